// Loads and runs model.wasm, a network written by pyro-compress; in browsers and in node.
//
//     import { load } from "./model.js";
//     const net = await load();
//     const outputs = net.run(values); // net.outputs numbers per example

/** The network of a .wasm file, by its address or its bytes; without either, of the one beside this module. */
export async function load(source = new URL("./model.wasm", import.meta.url)) {
  const module = await WebAssembly.compile(await bytesOf(source));
  const { memory, input, output, run } = (await WebAssembly.instantiate(module)).exports;
  const [section] = WebAssembly.Module.customSections(module, "pyro-compress");
  const card = JSON.parse(new TextDecoder().decode(section));
  const { shape, dtype, meaning } = card.input;
  const parts = partsOf(card.input);
  const inputs = product(shape), outputs = product(card.output_shape);
  const Values = { uint8: Uint8Array, int64: Int32Array }[dtype] ?? Float32Array;
  const given = new Values(memory.buffer, input.value, inputs);
  const found = new Float32Array(memory.buffer, output.value, outputs);
  return {
    card, shape, inputs, outputs, classes: card.classes,
    run(values) {
      const examples = values.length / inputs;
      if (values[Symbol.toStringTag] !== Values.name) throw new TypeError(`this network takes ${Values.name === "Int32Array" ? "an" : "a"} ${Values.name}: ${meaning}`);
      if (!Number.isInteger(examples)) throw new RangeError(`${values.length} values; an example has ${inputs} (${shape.join(" × ")})`);
      for (const { start, end, range, takes } of parts)
        for (let i = 0; i < examples; i++)
          for (const value of values.subarray(i * inputs + start, i * inputs + end))
            if (!(value >= range[0] && value <= range[1])) throw new RangeError(`a value of ${value}; ${takes}`);
      const results = new Float32Array(examples * outputs);
      for (let i = 0; i < examples; i++) {
        given.set(values.subarray(i * inputs, (i + 1) * inputs));
        run();
        results.set(found, i * outputs);
      }
      return results;
    },
  };
}

// Where inputs with a range lie in an example.
function partsOf({ inputs, ...one }) {
  let end = 0;
  return (inputs ?? [{ ...one, name: "this network" }]).map(({ name, shape, range, meaning }) => {
    const start = end;
    return { start, end: end += product(shape), range, takes: `${name} takes ${meaning}` };
  }).filter(({ range }) => range);
}

const product = (shape) => shape.reduce((a, b) => a * b, 1);

async function bytesOf(source) {
  if (typeof source !== "string" && !(source instanceof URL)) return source;
  const file = globalThis.process?.versions?.node && !/^(https?|data|blob):/.test(source);
  if (file) return (await import(/* webpackIgnore: true */ "node:fs/promises")).readFile(source);
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${source}: ${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}
