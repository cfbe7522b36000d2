#!/usr/bin/env bash
# The main job on the embedded digits: fit, compress, evaluate. Arguments are passed on to `pyro-compress fit`.
# One thread: at this size a second gains little, and waits for whatever else the machine does.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
set_up ""

out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
.venv/bin/pyro-compress fit --prior horseshoe --threads 1 --out "$out/run" "$@"
.venv/bin/pyro-compress compress "$out/run"
.venv/bin/pyro-compress evaluate "$out/run/network.pcn"
