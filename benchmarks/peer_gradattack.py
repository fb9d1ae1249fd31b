"""The attack of `torch_loop.py` through GradAttack, the package of the paper: its own steps, on the same network.

The interface is that of `torch_loop.py`: `prepare`, `advance`, `images`. An `advance` is a whole attack of as many
steps. GradAttack runs inside of the trainer of PyTorch Lightning, of a version that is no longer to be had; here its
`training_step` is called in a plain loop, with a logger that drops everything, so that what is timed is its step and
not its trainer. The package leaves out a module that its `attacks` import, which is passed by. It returns the last
guess, not the best. Written for GradAttack 0.1.2.
"""

import importlib
import sys
import time
import types
import warnings

import numpy as np
import torch
import torch_loop
from peer_breaching import Network, load_torchvision
from torch_loop import best_device

__all__ = ["advance", "best_device", "images", "load", "prepare"]

_prepared: types.SimpleNamespace | None = None
"""What `advance` attacks: the arguments of GradAttack's `GradientReconstructor`."""


class _Silent:
    """Has every attribute and every method; none does anything."""

    def __getattr__(self, name):
        return self

    def __call__(self, *arguments, **options):
        return None


def load() -> None:
    """Loads GradAttack and all it imports."""
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
    models, inversion = _package()
    torch_loop.settings()
    network = Network(model, torch_loop.tensors(params, device), torch_loop.tensors(statistics, device)).to(device)
    gradient = torch_loop.tensors(observed, device)
    std = torch.tensor(1 / (high - low)).view(1, -1, 1, 1).to(device)
    mean = -torch.tensor(low).view(1, -1, 1, 1).to(device) * std
    start = torch_loop.pictures(images).to(device)
    client = models.LightningWrapper(network, training_loss_metric=torch.nn.functional.cross_entropy)
    client.log_train_acc = False

    class Reconstructor(inversion.GradientReconstructor):
        """Without a trainer; in its first step, none of the fiftieth and hundredth ones, in which it draws and logs."""

        logger, global_step = _Silent(), 1

        def manual_backward(self, loss, *arguments):
            loss.backward()

    def reconstructor(steps):
        return Reconstructor(
            types.SimpleNamespace(model=client),
            start,  # in place of the truth, of which it takes the shape
            [gradient[name] for name in network.weights],
            torch.tensor(labels, dtype=torch.int64, device=device),
            intial_reconstruction=start.clone(),
            mean_std=(mean, std),
            num_iterations=steps,
            lr=learning_rate,
            total_variation=tv,
        ).to(device)

    _prepared = types.SimpleNamespace(reconstructor=reconstructor, found=None)


def advance(steps: int) -> tuple[float, float]:
    """Attacks from the start in `steps` steps; returns the seconds it took and the last loss."""
    attack = _prepared.reconstructor(steps)
    attack.configure_optimizers()
    batch = attack.transfer_batch_to_device(None, attack.device)
    began = time.perf_counter()
    for _ in range(steps):
        loss = attack.training_step(batch)
    found = float(loss.detach())
    seconds = time.perf_counter() - began
    _prepared.found = attack.best_guess.detach()
    return seconds, found


def images() -> np.ndarray:
    """What the latest attack found, [n, h, w, c] in the network's units."""
    return _prepared.found.permute(0, 2, 3, 1).cpu().numpy()


def _package():
    """The modules of networks and of the attack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_torchvision()
        models = importlib.import_module("gradattack.models")
        # Its package imports a module that was not published with it, which the attack does not need.
        (path,) = importlib.import_module("gradattack").__path__
        attacks = types.ModuleType("gradattack.attacks")
        attacks.__path__ = [f"{path}/attacks"]
        sys.modules.setdefault("gradattack.attacks", attacks)
        return models, importlib.import_module("gradattack.attacks.gradientinversion")
