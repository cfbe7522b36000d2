// Draws, prepares, asks the network. The network (exported with --raw) takes bytes and scales them itself.
import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { toMnist } from "./preprocess.js";

const PEN = 22;
const pad = document.getElementById("pad"), ink = pad.getContext("2d", { willReadFrequently: true });
const seen = document.getElementById("seen").getContext("2d");
const status = document.getElementById("status"), digit = document.getElementById("digit");
const bars = [...Array(10).keys()].map((i) => {
  const item = document.createElement("li");
  item.innerHTML = `<span>${i}</span><span class="bar"><i></i></span><span></span>`;
  document.getElementById("bars").append(item);
  return item;
});

ort.env.wasm.numThreads = 1; // more threads need cross-origin isolation, and this network needs none
ort.env.wasm.wasmPaths = { wasm: new URL("./vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };
const response = await fetch("model.onnx");
if (!response.ok) status.textContent = "model.onnx is missing: run setup.sh with a .pcn file.";
const bytes = new Uint8Array(await response.arrayBuffer());
const session = await ort.InferenceSession.create(bytes);
const size = `${bytes.length.toLocaleString("en")} bytes of network`;
status.textContent = `Ready: ${size}.`;
document.body.dataset.ready = "yes";

async function classify() {
  const gray = ink.getImageData(0, 0, pad.width, pad.height).data.filter((_, i) => i % 4 === 0);
  const pixels = toMnist(gray, pad.width);
  if (!pixels) return;
  show(pixels);
  const started = performance.now();
  const { logits } = await session.run({ raw: new ort.Tensor("uint8", pixels, [1, 1, 28, 28]) });
  const spent = performance.now() - started;
  const largest = Math.max(...logits.data);
  const weights = [...logits.data].map((value) => Math.exp(value - largest));
  const total = weights.reduce((a, b) => a + b);
  bars.forEach((item, i) => {
    const share = weights[i] / total;
    item.querySelector("i").style.width = `${100 * share}%`;
    item.lastElementChild.textContent = `${(100 * share).toFixed(1)} %`;
  });
  digit.textContent = logits.data.indexOf(largest);
  status.textContent = `${size}, ${spent.toFixed(2)} ms.`;
}

function show(pixels) {
  const image = seen.createImageData(28, 28);
  pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
  seen.putImageData(image, 0, 0);
}

function clear() {
  ink.fillStyle = "#000";
  ink.fillRect(0, 0, pad.width, pad.height);
  seen.clearRect(0, 0, 28, 28);
  digit.textContent = "";
  bars.forEach((item) => { item.querySelector("i").style.width = "0"; item.lastElementChild.textContent = ""; });
}

let last = null;
function stroke(event) {
  const scale = pad.width / pad.clientWidth, here = [event.offsetX * scale, event.offsetY * scale];
  ink.strokeStyle = "#fff";
  ink.lineWidth = PEN;
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  ink.moveTo(...(last ?? here));
  ink.lineTo(...here);
  ink.stroke();
  last = here;
}
pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); stroke(event); });
pad.addEventListener("pointermove", (event) => { if (last) stroke(event); });
pad.addEventListener("pointerup", () => { last = null; classify(); });
pad.addEventListener("pointercancel", () => { last = null; });
document.getElementById("clear").addEventListener("click", clear);
clear();
