// The same page over ONNX Runtime Web, for comparison: setup.sh fetches it.
import * as ort from "./vendor/ort.wasm.bundle.min.mjs";

/** The network of model.onnx, with a `run` like that of model.js. */
export async function load() {
  ort.env.wasm.numThreads = 1; // more threads need cross-origin isolation, and this network needs none
  ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  const response = await fetch(new URL("./model.onnx", import.meta.url));
  const session = await ort.InferenceSession.create(new Uint8Array(await response.arrayBuffer()));
  return {
    async run(pixels) {
      const { logits } = await session.run({ raw: new ort.Tensor("uint8", pixels, [pixels.length / 784, 1, 28, 28]) });
      return logits.data;
    },
  };
}
