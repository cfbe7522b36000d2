#!/usr/bin/env bash
# The main job on the embedded digits: fit, compress, evaluate. Arguments are passed on to `pyro-compress fit`.
# The result stays, in runs/demo or the next free name. One thread: at this size a second gains little, and waits for
# whatever else the machine does.
set -euo pipefail
from="$PWD"
source "$(dirname "$0")/setup.sh"
set_up ""

run=runs/demo
number=1
while [ -e "$run" ] || [ -e "runs/.$(basename "$run").unfinished" ]; do
  number=$((number + 1))
  run="runs/demo-$number"
done
.venv/bin/pyro-compress fit --prior horseshoe --threads 1 "$@" --out "$run"
.venv/bin/pyro-compress compress "$run"
.venv/bin/pyro-compress evaluate "$run/network.pcn"
echo
if [ "$from" = "$PWD" ]; then
  echo "Next, to see what the small network makes of the test images:"
else
  echo "Next, in $PWD, to see what the small network makes of the test images:"
fi
echo "  .venv/bin/pyro-compress predict $run/network.pcn digits --top 3"
