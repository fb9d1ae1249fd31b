"""Numbers in sentences. On its own, so that the command line starts without JAX."""


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`: the number with its noun, whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
