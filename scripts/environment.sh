# Sourced by the other scripts: a virtual environment with gi_jax in it.

if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "gi_jax needs Python 3.11 or newer; found: $("$python" --version 2>&1). Set PYTHON to one." >&2
      exit 1
    fi
    "$python" -m venv .venv
  fi
  . .venv/bin/activate
fi

# install_gi_jax REQUIREMENT: installs it in place, unless that was done for this very pyproject.toml.
install_gi_jax() {
  local stamp="$VIRTUAL_ENV/.gi_jax-$(printf '%s' "$1" | tr -c 'a-z\n' '_')" version
  version=$(cksum pyproject.toml; pwd)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$version" ]; then
    echo "installing gi_jax into $VIRTUAL_ENV (a minute or two)"
    python -m pip install --quiet --disable-pip-version-check --editable "$1"
    printf '%s' "$version" > "$stamp"
  fi
}
