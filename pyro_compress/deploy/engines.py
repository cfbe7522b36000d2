"""Ways to run an exported network, each as `(file, threads) -> (inputs -> a call that is ready to be timed)`.

Nothing heavy is imported before an engine is used, so that a process that measures memory holds one runtime only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_compress.inputs import inputs_of, unpacked

if TYPE_CHECKING:
    import onnxruntime

Call = Callable[[], Any]
Engine = Callable[[Path, int], Callable[[np.ndarray], Call]]


def session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """A CPU session; 0 threads leaves ONNX Runtime's default, one per core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(x: np.ndarray, entry: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs by the names of a model with this card entry; of several, from rows in which they lie."""
    several = [[one["name"], one["shape"], one["dtype"]] for one in entry.get("inputs", [])]
    return unpacked(x, inputs_of(several)) if several else {entry["name"]: x}


def onnx_runtime(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
    """ONNX Runtime with inputs and outputs bound once, as a serving loop would."""
    loaded = session(path, threads)
    target, entry = loaded.get_outputs()[0], json.loads(loaded.get_modelmeta().custom_metadata_map["input"])

    def ready(x: np.ndarray) -> Call:
        outputs = np.empty((len(x), *target.shape[1:]), np.float32)
        binding = loaded.io_binding()
        given = feeds(x, entry)
        for name, values in given.items():
            binding.bind_cpu_input(name, values)
        binding.bind_output(target.name, "cpu", 0, np.float32, outputs.shape, outputs.ctypes.data)

        def call(keep: tuple[Any, np.ndarray] = (given, outputs)) -> np.ndarray:
            loaded.run_with_iobinding(binding)
            return keep[1]

        return call

    return ready


def _torch_on(device: str) -> Engine:
    def engine(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
        import torch

        from pyro_compress.deploy.torch_files import load_safetensors
        from pyro_compress.pcn.gate import UNLIMITED

        if threads:
            torch.set_num_threads(threads)
        module = load_safetensors(path, UNLIMITED).to(device)

        def ready(x: np.ndarray) -> Call:
            inputs = torch.from_numpy(x).to(device)

            def call() -> torch.Tensor:
                with torch.inference_mode():
                    outputs = module(inputs)
                    if device == "cuda":
                        torch.cuda.synchronize()
                    return outputs

            return call

        return ready

    return engine


def numpy_runner(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
    """The folder's own `run.py`: CSR products of scipy where the folder holds them, which use one thread."""
    from pyro_compress.deploy.arrays import load_runner

    runner = load_runner(path)
    return lambda x: lambda: runner.run(x)


def compiled(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
    """A C file, compiled for this machine with all that its compiler can do; one thread."""
    from pyro_compress.deploy.c.library import FAST, Library

    library = Library(path, FAST)
    return lambda x: library.ready(x.astype(library.kind), np.empty((len(x), library.outputs), np.float32))


def webassembly(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
    """A `.wasm` file in node, through the module beside it; one thread."""
    from pyro_compress.deploy.wasm.node import Node, Timed

    loaded = Node(path)
    return lambda x: Timed(loaded, x)


def integers(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
    """A C file of integers, compiled for this machine; one thread, one example after the other."""
    from pyro_compress.deploy.c.library import FAST
    from pyro_compress.deploy.integer.library import IntegerLibrary

    library = IntegerLibrary(path, FAST)

    def ready(x: np.ndarray) -> Call:
        codes = library.codes(x)
        return lambda: library.run(codes)

    return ready


def executorch(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
    """An ExecuTorch program, one example after the other."""
    from pyro_compress.deploy.phone.executorch import load_executorch

    predict = load_executorch(path, threads)
    return lambda x: lambda: predict(x)


def litert(path: Path, threads: int) -> Callable[[np.ndarray], Call]:
    """A LiteRT model, one example after the other; one thread."""
    from pyro_compress.deploy.phone.litert import load_litert

    predict = load_litert(path)
    return lambda x: lambda: predict(x)


ENGINES: dict[str, Engine] = {
    "torch": _torch_on("cpu"),
    "torch CUDA": _torch_on("cuda"),
    "ONNX Runtime": onnx_runtime,
    "scipy CSR": numpy_runner,
    "C": compiled,
    "WebAssembly": webassembly,
    "C integers": integers,
    "ExecuTorch": executorch,
    "LiteRT": litert,
}
MANY = ("torch", "ONNX Runtime")
"""Engines that use several threads."""
