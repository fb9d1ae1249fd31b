#!/usr/bin/env bash
# Lint and tests, in .venv unless a virtual environment is active. Arguments go to pytest. Tests compile more than they
# compute, and compilation keeps one core busy: files run side by side, one to a core.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/environment.sh
install_gi_jax '.[dev]'

ruff check .
ruff format --check .
exec python -m pytest -n auto --dist loadfile "$@"
