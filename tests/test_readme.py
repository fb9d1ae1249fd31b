"""The snippets of the README run one after the other, with fewer steps and a smaller model."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
QUICKER = {"num_steps=400": "num_steps=2", '"convnet"': '"mlp"', "num_restarts=4": "num_restarts=2"}


@pytest.fixture(scope="module")
def names():
    """What the snippets have defined so far."""
    return {"__name__": "readme"}


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_snippets_run(names, number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = SNIPPETS[number]
    for slow, quick in QUICKER.items():
        text = text.replace(slow, quick)
    with jax.numpy_rank_promotion("allow"):  # as users have it
        exec(text, names)
    if "exact = " in text:
        pictures = names["own"].space.denormalize(names["exact"].reshape(1, 32, 32, 3))
        assert abs(pictures - names["victim"].images).max() < 1e-3
