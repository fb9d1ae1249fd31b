"""The same attack in PyTorch: the plain loop that its users write, as fast as a plain loop gets.

Double backward (`create_graph=True`) with respect to the images only, cosine over all tensors by inner products with
the observed norm computed once, native convolutions and batch normalization, no synchronization inside the loop.
Variants that were tried are in `NOTES.md`. `torch.compile` cannot differentiate twice.

`attack_step.py` runs this module in a process of its own, so that the thread pools of the two libraries never meet:
`prepare` once, then `advance` as often as wanted. Nothing in here imports JAX.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F

_Tensors = dict[str, torch.Tensor]

STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)


def logits(params: _Tensors, images: torch.Tensor) -> torch.Tensor:
    """Pre-activation ResNet-18 in training mode, as `gi_jax.models.resnet` has it: [n, 3, h, w] to [n, classes]."""

    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        kernel = params[f"{name}/kernel"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.batch_norm(x, None, None, params[f"{name}/scale"], params[f"{name}/bias"], training=True))

    x = norm("block0/norm", conv("block0/conv", images))
    for number, stride in enumerate(STRIDES, start=1):
        block = f"block{number}"
        a = norm(f"{block}/norm1", x)
        shortcut = conv(f"{block}/shortcut", a, stride) if f"{block}/shortcut/kernel" in params else a
        y = norm(f"{block}/norm2", conv(f"{block}/conv1", a, stride))
        x = conv(f"{block}/conv2", y) + shortcut
    return F.linear(x.mean((2, 3)), params["head/kernel"], params["head/bias"])


class Attack:
    """One lane: cosine distance and total variation, Adam on the sign of the gradient, clamped to the box.

    Args:
      params, observed: weights and observed gradient, path to array in JAX's layout.
      images: start, [n, h, w, c] in the network's units.
      labels: class numbers [n].
      low, high: [c], the box in the network's units.
      tv: weight of the total variation.
      learning_rate: of Adam.
      device: of torch.
    """

    def __init__(
        self,
        *,
        params: dict[str, np.ndarray],
        observed: dict[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        tv: float,
        learning_rate: float,
        device: str,
    ):
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # as JAX does on a GPU; a CPU computes in float32 either way
        self.device = device
        self.params = {name: _tensor(array).to(device).requires_grad_() for name, array in params.items()}
        self.observed = [_tensor(observed[name]).to(device).flatten() for name in self.params]
        self.observed_norm = torch.sqrt(sum(torch.dot(leaf, leaf) for leaf in self.observed))
        self.labels = torch.as_tensor(labels, dtype=torch.int64).to(device)
        self.images = torch.tensor(images).permute(0, 3, 1, 2).contiguous().to(device).requires_grad_()
        self.low, self.high = (torch.tensor(bound).view(1, -1, 1, 1).to(device) for bound in (low, high))
        self.tv = tv
        self.optimizer = torch.optim.Adam([self.images], lr=learning_rate)

    def step(self) -> torch.Tensor:
        """Moves the images; returns the matching loss before the move, on the device."""
        loss = F.cross_entropy(logits(self.params, self.images), self.labels)
        gradients = torch.autograd.grad(loss, list(self.params.values()), create_graph=True)
        flat = [gradient.flatten() for gradient in gradients]
        dot = sum(torch.dot(own, other) for own, other in zip(flat, self.observed, strict=True))
        square = sum(torch.dot(own, own) for own in flat)
        matching = 1 - dot / (torch.sqrt(square) * self.observed_norm)
        down = (self.images[:, :, 1:] - self.images[:, :, :-1]).abs().mean()
        across = (self.images[:, :, :, 1:] - self.images[:, :, :, :-1]).abs().mean()
        (gradient,) = torch.autograd.grad(matching + self.tv * (down + across), self.images)
        self.images.grad = gradient.sign_()
        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(self.low, self.high)
        return matching.detach()


def _tensor(array: np.ndarray) -> torch.Tensor:
    # JAX has kernels as [h, w, in, out] and [in, out], PyTorch as [out, in, h, w] and [out, in].
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return torch.tensor(array if order is None else np.ascontiguousarray(array.transpose(order)))


_attack: Attack | None = None


def prepare(**arguments) -> None:
    """Makes the `Attack` that `advance` advances."""
    global _attack
    _attack = Attack(**arguments)


def advance(steps: int) -> tuple[float, float]:
    """Takes `steps` steps; returns the seconds they took and the matching loss before the last one."""
    if _attack.device != "cpu":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        matching = _attack.step()
    loss = matching.item()  # waits for the device
    return time.perf_counter() - begin, loss


def best_device() -> str:
    """`cuda` if PyTorch has one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"
