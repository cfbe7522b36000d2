#!/usr/bin/env bash
# Fetches onnxruntime-web from the npm registry and puts the two files that the comparison needs into vendor/. Once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
npm install --no-package-lock --ignore-scripts --no-audit --no-fund --silent
mkdir -p vendor
cp node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm vendor/
echo "now: python3 -m http.server 8000 --bind 127.0.0.1 --directory $(dirname "$PWD")   and open http://127.0.0.1:8000/?onnx"
