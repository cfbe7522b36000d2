#!/usr/bin/env bash
# Everything worth measuring on a CUDA device, in under ten minutes: build/check_cuda.json. Arguments are passed on to
# scripts/check_cuda.py (--minutes 5, --only step, --device cpu --smoke to try it without one).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
set_up "[dev]"
if [ -z "${PYRO_COMPRESS_DATA:-}" ] && [ -d ../shared/data ]; then
  PYRO_COMPRESS_DATA="$(cd ../shared/data && pwd)"
  export PYRO_COMPRESS_DATA
fi
mkdir -p build
exec .venv/bin/python scripts/check_cuda.py --json build/check_cuda.json "$@"
