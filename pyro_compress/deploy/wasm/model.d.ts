// Types of model.js, written by pyro-compress.

/** A network that is ready to run. */
export interface Network {
  /** What the export says about itself: origin, scores, input, classes. */
  readonly card: Record<string, any>;
  /** Shape of an example. */
  readonly shape: readonly number[];
  /** Values of an example. */
  readonly inputs: number;
  /** Numbers per example that come out. */
  readonly outputs: number;
  /** Names in the order of the outputs; none where outputs are no classes. */
  readonly classes: readonly string[];
  /**
   * Outputs of examples that lie one behind the other.
   * @throws TypeError for another kind of array, RangeError for another number of values or values out of range.
   */
  run(values: Float32Array): Float32Array;
}

/** The network of a .wasm file, by its address or its bytes; without either, of the one beside model.js. */
export function load(source?: string | URL | ArrayBuffer | Uint8Array): Promise<Network>;
