#!/usr/bin/env bash
# Every check: ruff, mypy, pytest. Arguments are passed on to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
set_up "[dev]"

if [ -z "${PYRO_COMPRESS_DATA:-}" ] && [ -d ../shared/data ]; then
  PYRO_COMPRESS_DATA="$(cd ../shared/data && pwd)"
  export PYRO_COMPRESS_DATA
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest -n auto "$@"
