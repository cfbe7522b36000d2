#!/usr/bin/env bash
# Fetches onnxruntime-web from the npm registry and puts the two files the page needs into vendor/. Once.
# With a .pcn file as argument, the page's network is replaced by that one (needs pyro-compress).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
if [ $# -gt 0 ]; then
  "${PYTHON:-python3}" -m pyro_compress export "$1" --raw --force -o "$here/model.onnx"
fi
cd "$here"
npm install --no-package-lock --ignore-scripts --no-audit --no-fund --silent
mkdir -p vendor
cp node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm vendor/
echo "now: python3 -m http.server 8000 --bind 127.0.0.1 --directory $here   and open http://127.0.0.1:8000"
