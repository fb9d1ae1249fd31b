"""How defenses are called in tables and figures."""

import re

_NAMES = {"none": "no defense", "prune": "pruning", "mixup": "MixUp", "intra_instahide": "Intra-InstaHide"}


def defense_name(column: str) -> str:
    """`mixup:k=4 + prune:p=0.9` as `MixUp k = 4 + pruning p = 0.9`; what is not in the paper stays as it is."""
    return " + ".join(_stage_name(stage) for stage in column.split(" + "))


def _stage_name(stage):
    match = re.fullmatch(r"(\w+)(?::(\w)=([\d.]+))?", stage)
    if match is None or match[1] not in _NAMES:
        return stage
    return _NAMES[match[1]] + (f" {match[2]} = {match[3]}" if match[2] else "")


def parameters(column: str) -> str:
    """The numbers of a defense alone, for labels beside points: `k=4, p=0.9`."""
    return ", ".join(re.findall(r"\w+=[\d.]+", column))


def family(column: str) -> str:
    """The kind of a defense, for colors: the names of its stages."""
    return " + ".join(_NAMES.get(stage.split(":")[0], stage.split(":")[0]) for stage in column.split(" + "))
