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

__all__ = ["advance", "best_device", "images", "load", "prepare", "published"]

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
    models, _ = _package()
    torch_loop.settings()
    network = Network(model, torch_loop.tensors(params, device), torch_loop.tensors(statistics, device)).to(device)
    gradient = torch_loop.tensors(observed, device)
    std = torch.tensor(1 / (high - low)).view(1, -1, 1, 1).to(device)
    mean = -torch.tensor(low).view(1, -1, 1, 1).to(device) * std
    start = torch_loop.pictures(images).to(device)
    client = _client(models, network)

    def reconstructor(steps):
        return _reconstructor()(
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


def published(
    *,
    params: dict[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    start: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    tv: float,
    bn_prior: float,
    learning_rate: float,
    steps: int,
) -> dict[str, object]:
    """The attack of Table 2 by GradAttack's own ResNet-18, client and attack, with the batch's exact statistics.

    Args:
      params: weights, path to array in JAX's layout, as in `torch_loop`.
      images, labels: the private batch, [n, h, w, c] in the network's units and class numbers [n].
      start: of the attack, as `images`.
      mean, std: [c], of the normalization, which make the box.
      tv, bn_prior, learning_rate, steps: of the attack.

    Returns:
      `gradient`: the client's, by path, in JAX's layout; `losses`: before every step, and after the last;
      `found`: the last guess.
    """
    models, _ = _package()
    torch_loop.settings()
    network = importlib.import_module("gradattack.models.resnet").ResNet18(int(params["head/bias"].size))
    places = _places(network, params)
    with torch.no_grad():
        for name, tensor in torch_loop.tensors(params, "cpu").items():
            places[name].copy_(tensor)
    client = _client(models, network)
    labels = torch.tensor(labels, dtype=torch.int64)
    # The client's pass leaves its batch's statistics where the attack looks for them.
    told = dict(apply_transforms=False, eval_mode=False, stop_track_bn_stats=False, BN_exact=True)
    gradient, _ = client.get_batch_gradients((torch_loop.pictures(images), labels), **told)
    gradient = dict(zip(map(id, network.parameters()), (leaf.detach().clone() for leaf in gradient), strict=True))
    guess = torch_loop.pictures(start)
    attack = _reconstructor()(
        types.SimpleNamespace(model=client),
        guess,  # in place of the truth, of which it takes the shape
        list(gradient.values()),
        labels,
        intial_reconstruction=guess.clone(),
        mean_std=tuple(torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std)),
        num_iterations=steps,
        lr=learning_rate,
        total_variation=tv,
        bn_reg=bn_prior,
        BN_exact=True,
        attacker_eval_mode=False,
    )
    attack.configure_optimizers()
    batch = attack.transfer_batch_to_device(None, attack.device)
    losses = [float(attack.training_step(batch).detach()) for _ in range(steps)]
    found = attack.best_guess.detach().clone()
    losses.append(float(attack.training_step(batch).detach()))  # that of what was found
    return {
        "gradient": {name: _in_jax(gradient[id(place)].numpy()) for name, place in places.items()},
        "losses": losses,
        "found": found.permute(0, 2, 3, 1).numpy(),
    }


def _places(network, params):
    """The parameter of GradAttack's network for each of ours: of a kind of layer, both have the same order."""
    kinds = {4: torch.nn.Conv2d, 2: torch.nn.Linear, 1: torch.nn.BatchNorm2d}
    layers = {dims: [layer for layer in network.modules() if isinstance(layer, kind)] for dims, kind in kinds.items()}
    found = {}
    for dims, name in ((4, "kernel"), (2, "kernel"), (1, "scale")):
        ours = [path for path, leaf in params.items() if path.endswith(f"/{name}") and leaf.ndim == dims]
        for path, layer in zip(ours, layers[dims], strict=True):
            found[path] = layer.weight
            if layer.bias is not None:
                found[f"{path.removesuffix(name)}bias"] = layer.bias
    return found


def _in_jax(array):
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return array if order is None else array.transpose(order)


def _client(models, network):
    client = models.LightningWrapper(network, training_loss_metric=torch.nn.functional.cross_entropy)
    client.log_train_acc = False
    return client


def _reconstructor():
    """GradAttack's attack without a trainer."""
    _, inversion = _package()

    class Reconstructor(inversion.GradientReconstructor):
        """In its first step, none of the fiftieth and hundredth ones, in which it draws and logs."""

        logger, global_step = _Silent(), 1

        def manual_backward(self, loss, *arguments):
            loss.backward()

    return Reconstructor


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
