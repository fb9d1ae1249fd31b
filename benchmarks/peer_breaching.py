"""The attack of `torch_loop.py` through the package breaching: its own loop, on the same network and gradient.

The interface is that of `torch_loop.py`: `prepare`, `advance`, `images`. An `advance` is a whole attack of as many
steps, and its seconds are those of the package's `reconstruct`, which looks at its result once more at the end.
breaching computes a total variation that also counts the picture's edge, and returns the guess that follows the best
one. Written for breaching 0.1.2.
"""

import contextlib
import io
import time
import warnings
from types import SimpleNamespace

import numpy as np
import torch
import torch_loop
from torch_loop import NETWORKS, best_device, normalization

__all__ = ["advance", "best_device", "images", "load", "prepare"]


class Network(torch.nn.Module):
    """A network of `torch_loop` as a module that can be copied, filled and switched to evaluation mode."""

    def __init__(self, model: str, params: dict[str, torch.Tensor], averages: dict[str, torch.Tensor]):
        super().__init__()
        self.network = NETWORKS[model]
        self.weights = torch.nn.ParameterDict(params)
        for name, tensor in averages.items():
            self.register_buffer(name, tensor)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] to [n, classes]."""
        params = dict(self.weights.items())
        return self.network(params, images, normalization(params, dict(self.named_buffers()), training=self.training))


_prepared: SimpleNamespace | None = None
"""What `advance` attacks: the arguments of breaching's `prepare_attack` and `reconstruct`."""
_libraries = []
"""Operators are forgotten with the library that defined them."""


def load() -> None:
    """Loads breaching and all it imports."""
    _package()


def prepare(
    *,
    params: dict[str, np.ndarray],
    observed: dict[str, np.ndarray],
    statistics: dict[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    tv: float,
    learning_rate: float,
    device: str,
    model: str,
) -> None:
    """See `torch_loop.Attack`; normalizes with the running averages `statistics`."""
    global _prepared
    breaching, config = _package()
    torch_loop.settings()
    setup = dict(device=torch.device(device), dtype=torch.float32)
    network = Network(model, torch_loop.tensors(params, device), torch_loop.tensors(statistics, device)).to(**setup)
    config.regularization.total_variation.scale = tv
    config.optim.step_size = learning_rate
    std = 1 / (high - low)
    looks = SimpleNamespace(shape=(3, *images.shape[1:3]), mean=-low * std, std=std, modality="vision")
    gradient = torch_loop.tensors(observed, device)
    told = dict(
        labels=torch.tensor(labels, dtype=torch.int64, device=device),
        num_data_points=len(labels),
        local_hyperparams=None,
    )
    _prepared = SimpleNamespace(
        breaching=breaching,
        network=network,
        config=config,
        setup=setup,
        payload=[dict(parameters=list(network.parameters()), buffers=list(network.buffers()), metadata=looks)],
        shared=[dict(gradients=[gradient[name] for name in network.weights], buffers=None, metadata=told)],
        start=torch_loop.pictures(images).to(device),
        found=None,
    )


def advance(steps: int) -> tuple[float, float]:
    """Attacks from the start in `steps` steps; returns the seconds it took and the best matching loss."""
    this = _prepared
    this.config.optim.max_iterations = steps
    attack = this.breaching.attacks.prepare_attack(this.network, torch.nn.CrossEntropyLoss(), this.config, this.setup)
    began = time.perf_counter()
    found, stats = attack.reconstruct(this.payload, this.shared, {}, initial_data=this.start)
    seconds = time.perf_counter() - began
    this.found = found["data"]
    return seconds, float(stats["opt_value"])


def images() -> np.ndarray:
    """What the latest attack found, [n, h, w, c] in the network's units."""
    return _prepared.found.permute(0, 2, 3, 1).cpu().numpy()


def _package():
    """breaching and its settings of the attack, without what it prints."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        load_torchvision()
        import breaching

        return breaching, breaching.get_attack_config("invertinggradients")


def load_torchvision() -> None:
    """Imports torchvision as it comes with any PyTorch."""
    # breaching imports torchvision, whose wheels for GPUs want operators that a torch for CPUs does not have.
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
