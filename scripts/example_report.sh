#!/usr/bin/env bash
# docs/example: the README's run on the embedded digits, its page, and a picture of the page's top. A few minutes.
#
#     bash scripts/example_report.sh [OUT]
#
# OUT is docs/example unless it is named. The run itself is made in a folder that goes away. Chromium makes the picture;
# where there is none, the old one stays.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-docs/example}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
command="${PYRO_COMPRESS:-.venv/bin/pyro-compress}"
mkdir -p "$out"

"$command" fit --prior horseshoe --threads 1 --snapshots --out "$folder/digits-mlp-horseshoe-0"
"$command" compress "$folder/digits-mlp-horseshoe-0"
"$command" report "$folder/digits-mlp-horseshoe-0" --threads 1 --force --out "$out/report.html"

for browser in chromium chromium-browser google-chrome; do
  if command -v "$browser" >/dev/null; then
    "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$folder/browser" \
      --window-size=1200,1180 --screenshot="$out/report.png" "file://$(realpath "$out/report.html")" 2>/dev/null
    break
  fi
done
ls -l "$out"
