"""Makes resnet18.json: `python tests/golden/make_resnet18.py` (needs torch; the tests do not).

The pre-activation ResNet-18 written down once more, in PyTorch and double precision, with weights from a formula. Of
every tensor the golden numbers are the length of its gradient and an inner product with the formula, which a
transposed axis would change.
"""

import json
from pathlib import Path

import numpy as np

STAGES = [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]
NUM_CLASSES, NUM_IMAGES, SIDE = 10, 3, 16
LABELS = [3, 0, 7]


def wave(size: int, number: int) -> np.ndarray:
    """`size` numbers in [-1, 1] without visible order, float64: a cosine whose phase is the square of the index."""
    index = np.arange(size, dtype=np.int64)
    return np.cos(2 * np.pi * ((index * index * 7 + index * 31 + 101 * number) % 100_003) / 100_003)


def tensors() -> dict[str, np.ndarray]:
    """Weights and running statistics by PyTorch's shapes, in the order of the network; norm layers by their place."""
    made = {}

    def conv(name, features, channels, size):
        fan_in = channels * size * size
        shape = (features, channels, size, size)
        made[f"{name}.weight"] = wave(features * fan_in, len(made)).reshape(shape) * (2 / fan_in) ** 0.5

    def norm(name, features):
        made[f"{name}.weight"] = 1 + 0.3 * wave(features, len(made))
        made[f"{name}.bias"] = 0.2 * wave(features, len(made))
        made[f"{name}.running_mean"] = 0.1 * wave(features, len(made))
        made[f"{name}.running_var"] = 1 + 0.4 * wave(features, len(made))

    conv("block0.conv", 64, 3, 3)
    norm("block0.norm", 64)
    channels = 64
    for number, (features, stride) in enumerate(STAGES, start=1):
        block = f"block{number}"
        norm(f"{block}.norm1", channels)
        conv(f"{block}.conv1", features, channels, 3)
        norm(f"{block}.norm2", features)
        conv(f"{block}.conv2", features, features, 3)
        if stride != 1 or channels != features:
            conv(f"{block}.shortcut", features, channels, 1)
        channels = features
    made["head.weight"] = wave(NUM_CLASSES * 512, len(made)).reshape(NUM_CLASSES, 512) * 512**-0.5
    made["head.bias"] = 0.1 * wave(NUM_CLASSES, len(made))
    return made


def images() -> np.ndarray:
    """The batch, float64 [n, h, w, 3]."""
    return 1.5 * wave(NUM_IMAGES * SIDE * SIDE * 3, 1000).reshape(NUM_IMAGES, SIDE, SIDE, 3)


def main() -> None:
    """Writes the golden numbers beside this file."""
    import torch
    from torch.nn import functional

    def run(training: bool) -> dict:
        held = {name: torch.tensor(value, dtype=torch.float64) for name, value in tensors().items()}
        for name, tensor in held.items():
            tensor.requires_grad_("running" not in name)

        def norm(name, x):
            names = ("running_mean", "running_var", "weight", "bias")
            return functional.batch_norm(
                x, *(held[f"{name}.{n}"] for n in names), training=training, momentum=0.1, eps=1e-5
            )

        def conv(name, x, stride, padding):
            return functional.conv2d(x, held[f"{name}.weight"], stride=stride, padding=padding)

        x = torch.tensor(images()).permute(0, 3, 1, 2)
        x = torch.relu(norm("block0.norm", conv("block0.conv", x, 1, 1)))
        for number, (_, stride) in enumerate(STAGES, start=1):
            block = f"block{number}"
            a = torch.relu(norm(f"{block}.norm1", x))
            name = f"{block}.shortcut"
            shortcut = conv(name, a, stride, 0) if f"{name}.weight" in held else a
            y = torch.relu(norm(f"{block}.norm2", conv(f"{block}.conv1", a, stride, 1)))
            x = conv(f"{block}.conv2", y, 1, 1) + shortcut
        logits = functional.linear(x.mean((2, 3)), held["head.weight"], held["head.bias"])
        loss = functional.cross_entropy(logits, torch.tensor(LABELS))
        loss.backward()
        found = {"logits": logits.tolist(), "loss": loss.item(), "gradients": {}, "running": {}}
        for number, (name, tensor) in enumerate(held.items()):
            values = (tensor if "running" in name else tensor.grad).detach().numpy().reshape(-1)
            row = [float(np.linalg.norm(values)), float(values @ wave(values.size, 500 + number))]
            found["running" if "running" in name else "gradients"][name] = row
        return found

    golden = {"train": run(True), "eval": run(False)}
    Path(__file__).with_name("resnet18.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
