#!/usr/bin/env bash
# Installs gi_jax into .venv (unless a virtual environment is active) and runs the attack without arguments:
# six photographs, no defense against three. Leaves the picture, the figures and the reconstructions in quickstart/.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/environment.sh
install_gi_jax .

gi-jax attack --out quickstart --overwrite "$@"
