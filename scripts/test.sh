#!/usr/bin/env bash
# Every check: ruff, mypy, pytest. `--all` runs the slow tests too (kills, servers, browsers, several processes, long
# fits) and the other ArviZ, as continuous integration does. Other arguments are passed on to pytest.
# ArviZ 0.23 (Python 3.11) and 1.x (3.12 and newer) differ: where .venv has the one and an interpreter for the other is
# installed (or named by PYTHON_ARVIZ), a small environment without torch checks what is written to disk against it too.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
set_up "[dev]"
all=
if [ "${1:-}" = --all ]; then
  shift
  all=yes
  set -- -m "slow or not slow" "$@"
fi

if [ -z "${PYRO_COMPRESS_DATA:-}" ] && [ -d ../shared/data ]; then
  PYRO_COMPRESS_DATA="$(cd ../shared/data && pwd)"
  export PYRO_COMPRESS_DATA
fi
unset PYTHONDONTWRITEBYTECODE  # modules and tests are compiled once, not once a process
.venv/bin/ruff check .
.venv/bin/ruff format --check .
mkdir -p build
.venv/bin/mypy >build/mypy.txt 2>&1 & # a minute of one processor, beside the tests instead of before them
types=$!
trap 'kill "$types" 2>/dev/null || true' EXIT
.venv/bin/pytest -n auto --dist loadfile "$@"
if ! wait "$types"; then
  cat build/mypy.txt
  exit 1
fi
trap - EXIT
tail -n 1 build/mypy.txt

other_python() {
  local candidate
  for candidate in "${PYTHON_ARVIZ:-}" python3.12 python3.13 python3.14 "$HOME"/.pyenv/versions/3.1[234]*/bin/python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

if [ -n "$all" ] && .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
  other="$(other_python)"
  if [ -z "$other" ]; then
    echo "ArviZ 1.x not checked: no Python 3.12 or newer found"
  else
    here=build/arviz
    mkdir -p "$here"
    [ -x "$here/venv/bin/pytest" ] || {
      "$other" -m venv --clear "$here/venv"
      "$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        "arviz>=1" h5netcdf h5py matplotlib "numpy>=2" pytest
    }
    .venv/bin/pyro-compress fit --hidden 20,10 --epochs 3 --threads 1 --out "$here/run" --force >/dev/null 2>&1
    .venv/bin/pyro-compress inspect "$here/run" --threads 1 --netcdf "$here/run.nc" --force >/dev/null
    PYTHONPATH=. PYRO_COMPRESS_NETCDF="$here/run.nc" "$here/venv/bin/python" -m pytest --noconftest \
      -p no:cacheprovider tests/test_arviz_compat.py
  fi
fi
