"""The step of a CUDA device as its machine code, without a device: inductor writes Triton, Triton compiles it.

What inductor asks a device is answered here with what an H100 would say, in a process of its own: it keeps answers.
Nothing is launched.
"""

import importlib.util
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_other_device as elsewhere
import torch
from torch import Tensor, fx
from torch._inductor import config
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import hints
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from pyro_compress.bayes.compiler import OPTIONS
from pyro_compress.bayes.elementary import ELEMENTARY
from pyro_compress.bayes.step import Rule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="torch's CUDA builds bring it"),
]
SIZES = {"XBLOCK": 64, "YBLOCK": 32, "R0_BLOCK": 64, "R1_BLOCK": 4}
"""Of the blocks that a device would time to choose."""
H100 = {
    "multi_processor_count": 132, "cc": 90, "major": 9, "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024, "warp_size": 32,
}  # fmt: skip


def answered(patch: pytest.MonkeyPatch) -> None:
    """What inductor asks a device, answered."""
    told = hints.DeviceProperties(type="cuda", index=0, **H100)
    memory = {"total_memory": 80 << 30, "L2_cache_size": 50 << 20, "shared_memory_per_block_optin": 232448}
    answers: dict[str, Any] = {
        "get_device_properties": SimpleNamespace(**H100, **memory, name="H100", gcnArchName=""),
        "is_available": True, "current_device": 0, "device_count": 1, "get_device_capability": (9, 0),
    }  # fmt: skip
    for name, answer in answers.items():
        patch.setattr(f"torch.cuda.{name}", lambda *given, answer=answer, **options: answer)
    patch.setattr(hints.DeviceProperties, "create", classmethod(lambda kind, device: told))
    patch.setattr("torch.utils._triton.triton_hash_with_backend", lambda: "none")
    patch.setattr("torch._inductor.runtime.triton_helpers.set_driver_to_gpu", lambda: None)


def program_of(graph: fx.Graph) -> str:
    """What inductor writes for a step that was traced on shapes, as if they lay on a CUDA device."""
    given = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
    shapes = [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta") for one in given]
    graph.set_codegen(fx.graph.CodeGen())
    step: Any = fx.GraphModule(graph.owning_module, graph)
    with torch.no_grad():  # as `compiled` and inductor take it apart; AOT autograd leaves values that are not changed
        step = make_fx(step, decomposition_table=ELEMENTARY)(*shapes)
        step = torch.func.functionalize(step, remove="mutations")
        step = make_fx(step, decomposition_table=select_decomp_table())(*shapes)
    step.graph.eliminate_dead_code()
    mode = FakeTensorMode()

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")

    with mode:
        for node in step.graph.nodes:
            node.meta["val"] = tree_map(there, node.meta.get("val"))
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
        inputs = [there(shape) for shape in shapes]
    step.recompile()
    with config.patch(OPTIONS), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        lowering = GraphLowering(step, example_inputs=inputs)
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            return lowering.codegen()[0].value


def machine_code(name: str, source: str, folder: Path) -> bytes:
    """A kernel compiled for an H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    told: dict[str, Any] = {}

    def noted(**options: Any) -> Any:
        return lambda function: told.setdefault("function", function) if told.update(options) is None else None

    path = folder / f"{name}.py"
    path.write_text(re.sub(r"@triton_heuristics\.\w+\(", "@noted(", source))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    module.noted = noted  # type: ignore[attr-defined]
    spec.loader.exec_module(module)
    signature, constants = dict(told["triton_meta"]["signature"]), dict(told["triton_meta"]["constants"])
    for argument in told["function"].arg_names:
        if signature.setdefault(argument, "constexpr") == "constexpr":
            constants.setdefault(argument, SIZES.get(argument))
    kernel = ASTSource(fn=told["function"], signature=signature, constexprs=constants)
    found: bytes = triton.compile(kernel, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    return found


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("classification", {"prior": "log-uniform", "estimator": "local"}),
        ("regression", {"prior": "horseshoe", "estimator": "weight"}),
        ("reconstruction", {"prior": "gaussian", "optimizer": "natural"}),
    ],
)
def test_every_kernel_of_a_step_compiles(task: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Convolutions and products are the libraries'; all else is fused, and nothing falls back to a call of ATen's."""
    command = [sys.executable, __file__, task, json.dumps(options), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert {*told["calls"]} <= {"mm", "addmm", "convolution", "convolution_backward.default", "randn.default"}
    assert 5 < told["kernels"] < 60
    assert told["machine_code"] == told["kernels"]


def main(task: str, options: str, folder: str) -> None:
    """Write the step's program and compile its kernels; prints what was found as JSON."""
    traced = elsewhere.traced_elsewhere(*elsewhere.train_state_of(task, **json.loads(options)), Rule())
    with pytest.MonkeyPatch.context() as patch:
        answered(patch)
        program = program_of(traced)
        kernels = re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", program, re.DOTALL)
        compiled = [machine_code(name, source, Path(folder)) for name, source in kernels]
    code = "\n".join(line for line in program.splitlines() if not line.lstrip().startswith("#"))
    calls = sorted(set(re.findall(r"(?:extern_kernels|torch\.ops\.aten)\.([\w.]+)", code)))
    binary = sum(one.startswith(b"\x7fELF") for one in compiled)
    print(json.dumps({"calls": calls, "kernels": len(kernels), "machine_code": binary}))


if __name__ == "__main__":
    main(*sys.argv[1:])
