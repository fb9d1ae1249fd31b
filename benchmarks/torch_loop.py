"""The same attack and the same training in PyTorch: the plain loops that its users write, as fast as such loops get.

The attack is a double backward (`create_graph=True`) with respect to the images only, cosine over all tensors by inner
products with the observed norm computed once, native convolutions and batch normalization, no synchronization inside
the loop. Variants that were tried are in `NOTES.md`. `torch.compile` cannot differentiate a compiled program twice;
`compiled=True` compiles the whole second derivative, written with `torch.func`, instead, which takes minutes.

Benchmarks run this module in a process of its own, so that the thread pools of the two libraries never meet: `prepare`
or `prepare_training` once, then `advance` as often as wanted. Nothing in here imports JAX.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

_Tensors = dict[str, torch.Tensor]
_Arrays = dict[str, np.ndarray]

STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)


def resnet18(params: _Tensors, images: torch.Tensor, norm: Callable) -> torch.Tensor:
    """Pre-activation ResNet-18 as `gi_jax.models.resnet` has it: [n, 3, h, w] to [n, classes]."""
    x = norm("block0/norm", _conv(params, "block0/conv", images))
    for number, stride in enumerate(STRIDES, start=1):
        block = f"block{number}"
        a = norm(f"{block}/norm1", x)
        shortcut = _conv(params, f"{block}/shortcut", a, stride) if f"{block}/shortcut/kernel" in params else a
        y = norm(f"{block}/norm2", _conv(params, f"{block}/conv1", a, stride))
        x = _conv(params, f"{block}/conv2", y) + shortcut
    return F.linear(x.mean((2, 3)), params["head/kernel"], params["head/bias"])


def convnet(params: _Tensors, images: torch.Tensor, norm: Callable) -> torch.Tensor:
    """Three convolutions and a linear head on all features, as `gi_jax.models.small` has it."""
    x = images
    for number, stride in enumerate((1, 2, 2)):
        x = norm(f"block{number}/norm", _conv(params, f"block{number}/conv", x, stride))
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), params["head/kernel"], params["head/bias"])


NETWORKS = {"resnet18": resnet18, "convnet": convnet}


def _conv(params: _Tensors, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernel = params[f"{name}/kernel"]
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def normalization(
    params: _Tensors, averages: _Tensors | None = None, *, training: bool = True, seen: dict | None = None
) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """Batch normalization and ReLU of the layer called `name`: (name, x) to x.

    Args:
      params: of the network.
      averages: running averages, `layer/mean` and `layer/var`; a training moves them.
      training: normalize with the batch's statistics, else with `averages`.
      seen: gets mean and biased variance of each layer's input, by name.
    """

    def norm(name, x):
        if seen is not None:
            seen[name] = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        mean, var = (None if averages is None else averages[f"{name}/{field}"] for field in ("mean", "var"))
        return F.relu(F.batch_norm(x, mean, var, params[f"{name}/scale"], params[f"{name}/bias"], training=training))

    return norm


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
      model: a key of `NETWORKS`.
      statistics: as far as shared, path to array, or None.
      running: whether they are running averages to normalize with; else the images' own statistics do.
      bn_prior: weight of the prior that draws the images' own statistics to the shared ones.
      decay_at: steps after which the rate is divided by ten.
      compiled: see above.
    """

    def __init__(
        self,
        *,
        params: _Arrays,
        observed: _Arrays,
        images: np.ndarray,
        labels: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        tv: float,
        learning_rate: float,
        device: str,
        model: str = "resnet18",
        statistics: _Arrays | None = None,
        running: bool = False,
        bn_prior: float = 0.0,
        decay_at: tuple[int, ...] = (),
        compiled: bool = False,
    ):
        settings()
        self.device, self.network = device, NETWORKS[model]
        self.params = tensors(params, device)
        for tensor in self.params.values():
            tensor.requires_grad_()
        self.low, self.high = (torch.tensor(bound).view(1, -1, 1, 1).to(device) for bound in (low, high))
        self.tv, self.bn_prior, self.learning_rate, self.decay_at = tv, bn_prior, learning_rate, decay_at
        self.shared, self.running = None if statistics is None else tensors(statistics, device), running
        self.aim(images, observed, labels)
        self.gradient = None
        if compiled:
            self.gradient = torch.compile(torch.func.grad_and_value(self._functional, has_aux=True))
            self.gradient(self.images.detach())

    def aim(self, images: np.ndarray, observed: _Arrays, labels: np.ndarray) -> None:
        """Turns to another victim of the same network, without compiling again."""
        self.observed = [_tensor(observed[name]).to(self.device).flatten() for name in self.params]
        self.observed_norm = torch.sqrt(sum(torch.dot(leaf, leaf) for leaf in self.observed))
        self.labels = torch.tensor(labels, dtype=torch.int64).to(self.device)
        self.images = pictures(images).to(self.device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr=self.learning_rate)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, list(self.decay_at))

    def step(self) -> torch.Tensor:
        """Moves the images; returns the matching loss before the move, on the device."""
        if self.gradient is None:
            total, matching = self._eager()
            (gradient,) = torch.autograd.grad(total, self.images)
        else:
            gradient, (_, matching) = self.gradient(self.images.detach())
        self.images.grad = gradient.sign_()
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            self.images.clamp_(self.low, self.high)
        return matching.detach()

    def _loss(self, params, images):
        seen = {} if self.bn_prior else None
        norm = normalization(params, self.shared if self.running else None, training=not self.running, seen=seen)
        loss = F.cross_entropy(self.network(params, images, norm), self.labels)
        return loss, self._prior(seen) if self.bn_prior else images.new_zeros(())

    def _prior(self, seen):
        pairs = (
            (own, self.shared[f"{name}/{field}"])
            for name, layer in seen.items()
            for own, field in zip(layer, ("mean", "var"), strict=True)
        )
        return self.bn_prior * sum(torch.linalg.vector_norm(own - other) for own, other in pairs)

    def _objective(self, gradients, images, prior):
        flat = [gradient.flatten() for gradient in gradients]
        dot = sum(torch.dot(own, other) for own, other in zip(flat, self.observed, strict=True))
        square = sum(torch.dot(own, own) for own in flat)
        matching = 1 - dot / (torch.sqrt(square) * self.observed_norm)
        down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean()
        across = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().mean()
        return matching + self.tv * (down + across) + prior, matching

    def _eager(self):
        loss, prior = self._loss(self.params, self.images)
        gradients = torch.autograd.grad(loss, list(self.params.values()), create_graph=True)
        return self._objective(gradients, self.images, prior)

    def _functional(self, images):
        params = {name: tensor.detach() for name, tensor in self.params.items()}
        gradients, prior = torch.func.grad(self._loss, has_aux=True)(params, images)
        return self._objective(list(gradients.values()), images, prior)


class Training:
    """Stochastic gradient descent with Nesterov momentum on random pictures in memory, without augmentation.

    Args:
      model: a key of `NETWORKS`.
      params, averages: weights and running averages, path to array in JAX's layout.
      images: [n, h, w, c] in the network's units.
      labels: class numbers [n].
      batch_size, learning_rate, momentum, weight_decay, label_smoothing: of the recipe.
      device: of torch.
    """

    def __init__(
        self,
        *,
        model: str,
        params: _Arrays,
        averages: _Arrays,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        label_smoothing: float,
        device: str,
    ):
        settings()
        self.device, self.network, self.batch_size = device, NETWORKS[model], batch_size
        self.params, self.averages = tensors(params, device), tensors(averages, device)
        for tensor in self.params.values():
            tensor.requires_grad_()
        self.images, self.labels = pictures(images).to(device), torch.tensor(labels, dtype=torch.int64).to(device)
        self.label_smoothing = label_smoothing
        self.optimizer = torch.optim.SGD(
            self.params.values(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=True
        )

    def step(self) -> torch.Tensor:
        """One step on a batch drawn at random; returns its loss before the step, on the device."""
        chosen = torch.randperm(len(self.labels), device=self.device)[: self.batch_size]
        norm = normalization(self.params, self.averages)
        logits = self.network(self.params, self.images[chosen], norm)
        loss = F.cross_entropy(logits, self.labels[chosen], label_smoothing=self.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def load() -> None:
    """Loads what takes time to load, for a process that is to wait for it; here PyTorch, by importing this module."""


def settings() -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # as JAX does on a GPU; a CPU computes in float32 either way


def tensors(arrays: _Arrays, device: str) -> _Tensors:
    """Arrays in JAX's layout by name, in PyTorch's."""
    return {name: _tensor(array).to(device) for name, array in arrays.items()}


def _tensor(array: np.ndarray) -> torch.Tensor:
    # JAX has kernels as [h, w, in, out] and [in, out], PyTorch as [out, in, h, w] and [out, in].
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return torch.tensor(array if order is None else np.ascontiguousarray(array.transpose(order)))


def pictures(images: np.ndarray) -> torch.Tensor:
    """[n, h, w, c] as [n, c, h, w]."""
    return torch.tensor(images).permute(0, 3, 1, 2).contiguous()


_looped: Attack | Training | None = None


def prepare(**arguments) -> None:
    """Makes the `Attack` that `advance` advances. A compiled one is kept, and takes what differs between victims."""
    global _looped
    if arguments.get("compiled") and isinstance(_looped, Attack):
        _looped.aim(*(arguments[name] for name in ("images", "observed", "labels")))
    else:
        _looped = Attack(**arguments)


def prepare_training(**arguments) -> None:
    """Makes the `Training` that `advance` advances."""
    global _looped
    _looped = Training(**arguments)


def advance(steps: int) -> tuple[float, float]:
    """Takes `steps` steps; returns the seconds they took and the (matching) loss before the last one."""
    if _looped.device != "cpu":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        loss = _looped.step()
    value = loss.item()  # waits for the device
    return time.perf_counter() - begin, value


def images() -> np.ndarray:
    """Where the attack is, [n, h, w, c] in the network's units."""
    return _looped.images.detach().permute(0, 2, 3, 1).cpu().numpy()


def best_device() -> str:
    """`cuda` if PyTorch has one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"
