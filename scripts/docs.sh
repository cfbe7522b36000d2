#!/usr/bin/env bash
# The site, as build/site: every page of docs/ and the reference of the Python code. Warnings are errors. Arguments are
# passed on to mkdocs (`serve` instead of `build` with --serve: a page that renews itself).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
if ! .venv/bin/python -c 'import mkdocstrings, material' 2>/dev/null; then
  set_up "[docs]"
fi
what=build
if [ "${1:-}" = --serve ]; then
  what=serve
  shift
fi
NO_MKDOCS_2_WARNING=1 exec .venv/bin/python -m mkdocs "$what" --strict "$@"
