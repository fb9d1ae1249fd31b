"""`python -m gi_jax` is the command `gi-jax`."""

import sys

from gi_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
