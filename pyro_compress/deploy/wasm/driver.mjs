// Runs an exported network for Python: a request per line of standard input, an answer per line of standard output.
// node driver.mjs MODULE FOLDER; examples lie in FOLDER/given, outputs are written to FOLDER/found.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [module, folder] = process.argv.slice(2);
const peak = () => process.resourceUsage().maxRSS / 1024;
const before = peak();
const { load } = await import(module);
const net = await load();
const Values = { uint8: Uint8Array, int64: Int32Array }[net.card.input.dtype] ?? Float32Array;
let values;

function timed(nanoseconds) {
  const times = [], start = process.hrtime.bigint();
  let last = start;
  do {
    net.run(values);
    const now = process.hrtime.bigint();
    times.push(Number(now - last));
    last = now;
  } while (last - start < nanoseconds);
  return { times };
}

const requests = {
  about: () => ({ dtype: net.card.input.dtype, scale: net.card.input.scale, shape: net.card.output_shape }),
  run() {
    values = new Values(new Uint8Array(readFileSync(join(folder, "given"))).buffer);
    writeFileSync(join(folder, "found"), new Uint8Array(net.run(values).buffer));
    return {};
  },
  time: ({ nanoseconds }) => timed(nanoseconds),
  memory: () => ({ peak: peak(), added: peak() - before }),
};
for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  console.log(JSON.stringify(requests[asked.what](asked)));
}
