// Draws, prepares, asks the network, which was exported with --raw: it takes bytes and scales them itself.
// With ?onnx behind the address ONNX Runtime Web is asked instead.
import { toMnist } from "./preprocess.js";

const PEN = 22, RUNS = 20;
const by = (id) => document.getElementById(id);
const pad = by("pad"), ink = pad.getContext("2d", { willReadFrequently: true }), seen = by("seen").getContext("2d");
const bars = [...Array(10).keys()].map((digit) => {
  const item = document.createElement("li");
  item.innerHTML = `<span>${digit}</span><i></i><span></span>`;
  return by("bars").appendChild(item);
});
let net, last = null, waiting = 0;

async function read() {
  waiting = 0;
  const { data } = ink.getImageData(0, 0, pad.width, pad.height);
  const pixels = toMnist(Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]), pad.width);
  if (!net || !pixels) return;
  const started = performance.now();
  let logits;
  for (let i = 0; i < RUNS; i++) logits = await net.run(pixels); // several times: a browser's clock is coarse
  const spent = (performance.now() - started) / RUNS;
  show(pixels, logits);
  by("status").textContent = `${by("status").dataset.sizes} One digit takes ${spent.toFixed(3)} ms.`;
}

function show(pixels, logits) {
  const image = seen.createImageData(28, 28);
  pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
  seen.putImageData(image, 0, 0);
  const largest = Math.max(...logits), weights = Array.from(logits, (value) => Math.exp(value - largest));
  const total = weights.reduce((a, b) => a + b);
  bars.forEach((item, i) => {
    const share = `${((100 * weights[i]) / total).toFixed(1)}`;
    item.className = logits[i] === largest ? "best" : "";
    item.children[1].style.backgroundSize = `${share}% 100%`;
    item.children[2].textContent = `${share} %`;
  });
  by("digit").textContent = logits.indexOf(largest);
}

function clear() {
  ink.fillStyle = "#000";
  ink.fillRect(0, 0, pad.width, pad.height);
  seen.clearRect(0, 0, 28, 28);
  by("digit").textContent = "";
  for (const { classList, children } of bars) {
    classList.remove("best");
    children[1].style.backgroundSize = "0 100%";
    children[2].textContent = "";
  }
}

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
  waiting ||= requestAnimationFrame(read);
}

pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); stroke(event); });
pad.addEventListener("pointermove", (event) => { if (last) stroke(event); });
for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => { last = null; });
by("clear").addEventListener("click", clear);
clear();

try {
  net = await (await import(location.search === "?onnx" ? "./onnx/runtime.js" : "./model.js")).load();
  const loaded = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const size = (entries) => entries.reduce((sum, one) => sum + one.decodedBodySize, 0).toLocaleString("en");
  const network = loaded.filter((one) => /model\.(wasm|onnx)$/.test(one.name));
  by("status").dataset.sizes = `The network has ${size(network)} bytes, the whole page ${size(loaded)}.`;
  by("status").textContent = by("status").dataset.sizes;
  document.body.dataset.ready = "yes";
} catch (error) {
  by("status").textContent = `The network could not be loaded: ${error.message}`;
}
