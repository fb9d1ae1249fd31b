"""Makes resnet18_large.json: `python tests/golden/make_resnet18_large.py` (needs torchvision; the tests do not).

torchvision's ResNet-18 in double precision, with weights from a formula: names and shapes of its state_dict in their
order, logits, and of the gradient of every tensor its length and an inner product with the formula.
"""

import json
from pathlib import Path

import numpy as np

if __package__:
    from golden.make_resnet18 import wave
else:
    from make_resnet18 import wave

NUM_CLASSES, NUM_IMAGES, SIDE = 7, 3, 64
LABELS = [3, 0, 6]


def tensor(name: str, shape: tuple[int, ...], number: int) -> np.ndarray:
    """The `number`-th tensor of the state_dict, float64."""
    values = wave(int(np.prod(shape)), number).reshape(shape)
    if len(shape) > 1:
        return values * (2 / np.prod(shape[1:])) ** 0.5
    return 0.3 * values + (1 if name.endswith(("weight", "running_var")) else 0)


def tensors(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """All of them, by name."""
    return {name: tensor(name, tuple(shape), number) for number, (name, shape) in enumerate(shapes.items())}


def images() -> np.ndarray:
    """The batch, float64 [n, h, w, 3]."""
    return 1.5 * wave(NUM_IMAGES * SIDE * SIDE * 3, 1000).reshape(NUM_IMAGES, SIDE, SIDE, 3)


def main() -> None:
    """Writes the golden numbers beside this file."""
    import torch
    import torchvision

    model = torchvision.models.resnet18(num_classes=NUM_CLASSES).double()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if value.ndim}
    golden = {"torchvision": torchvision.__version__, "shapes": shapes}
    for training in (True, False):
        held = {name: torch.tensor(value) for name, value in tensors(shapes).items()}
        model.load_state_dict(held, strict=False)
        model.train(training).zero_grad()
        logits = model(torch.tensor(images()).permute(0, 3, 1, 2))
        torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
        gradients = {}
        for number, (name, parameter) in enumerate(model.named_parameters()):
            values = parameter.grad.numpy().reshape(-1)
            product = float(values @ wave(values.size, 500 + number))
            gradients[name] = [float(np.linalg.norm(values)), product]
        golden["train" if training else "eval"] = {"logits": logits.tolist(), "gradients": gradients}
    Path(__file__).with_name("resnet18_large.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
