"""Numbers in sentences. On its own, so that the command line starts without JAX."""


def counted(number: int, noun: str) -> str:
    """`1 step`, `2,000 batches`: the number with its noun, whose plural ends in s, or es after a hiss."""
    plural = f"{noun}es" if noun.endswith(("s", "ch", "sh", "x")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
