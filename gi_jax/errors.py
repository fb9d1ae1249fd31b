"""The one error of a user's making. On its own, so that the command line starts without JAX."""


class InputError(ValueError):
    """Something the user gave cannot be used. The command line prints it as one line, without a traceback."""
