"""Layouts decide how a file decodes: frozen per version, held by a file in which every operation decides one."""

import time
from pathlib import Path

import numpy as np

from pyro_compress.pcn import file, layout, streams
from pyro_compress.types import Compressed, Graph, Node, Quantized

GOLDEN = Path(__file__).parent / "golden" / "layouts-version-4.pcn"
PLAIN = {
    "hardswish": {}, "hardsigmoid": {}, "scale": {"factor": 0.5}, "clip": {"low": -1, "high": 1},
    "softmax": {"axis": 1}, "log_softmax": {"axis": 1}, "permute": {"axes": [1, 3, 2]},
    "constant": {"shape": [4, 3, 3]},
    "slice": {"axis": 1, "start": 0, "stop": 4}, "mean": {"axes": [2], "keepdim": True},
    "sum": {"axes": [2], "keepdim": True}, "amax": {"axes": [2], "keepdim": True}, "layer_norm": {"eps": 0.1},
    "group_norm": {"groups": 2, "eps": 0.1}, "subtract": {}, "multiply": {}, "divide": {}, "concat": {"axis": 1},
    "mixture": {}, "matmul": {}, "attention": {"causal": False, "scale": None},
}  # fmt: skip
"""Operations that a look back does not pass by in any version, with attributes."""
PASSED = {
    "relu": {}, "tanh": {}, "sigmoid": {}, "silu": {}, "gelu": {"tanh": False}, "leaky_relu": {"slope": 0.1},
    "elu": {"alpha": 1, "scale": 1}, "softplus": {}, "mish": {}, "sin": {}, "prelu": {},
    "max_pool": {"kernel": [1, 1], "stride": [1, 1]}, "avg_pool": {"kernel": [1, 1], "stride": [1, 1]},
    "batch_norm": {"eps": 0.1}, "pad": {"sizes": [0, 0], "mode": "constant"}, "add": {},
}  # fmt: skip
"""Those that it passes by in versions 2, 3 and 4."""
OFFERED = [*PASSED, *(op for op in PLAIN if op not in ("mixture", "constant", "mean", "sum", "amax", "permute"))]
"""Operations of the golden file, each between a convolution of four channels and a linear layer."""


def branches() -> Compressed:
    """What the golden file holds: per operation, a linear layer whose codes lie as that operation lets them."""
    rng = np.random.default_rng(7)
    conv = {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
    nodes = [Node("input"), Node("conv2d", (0,), {"weight": "conv"}, conv)]
    tensors: dict[str, Quantized | np.ndarray] = {"conv": codes(rng, 4, 1, 3, 3)}
    ends = []
    for op in OFFERED:
        inputs = {"attention": 3, "concat": 2, "add": 2, "subtract": 2, "multiply": 2, "divide": 2, "matmul": 2}.get(
            op, 1
        )
        roles = {"prelu": ("weight",), "batch_norm": ("running_mean", "running_var")}.get(op, ())
        tensors |= {f"{op}.{role}": np.ones(4, np.float32) for role in roles}
        nodes.append(Node(op, (1,) * inputs, {role: f"{op}.{role}" for role in roles}, (PASSED | PLAIN)[op]))
        values = 72 if op == "concat" else 36
        nodes.append(Node("reshape", (len(nodes) - 1,), {}, {"shape": [values]}))
        nodes.append(Node("linear", (len(nodes) - 1,), {"weight": f"{op}.linear"}))
        tensors[f"{op}.linear"] = codes(rng, 2, values)
        ends.append(len(nodes) - 1)
    nodes.append(Node("reshape", (0,), {}, {"shape": [25]}))
    nodes.append(Node("linear", (len(nodes) - 1,), {"weight": "pixels"}))
    tensors["pixels"] = codes(rng, 2, 25)
    nodes.append(Node("concat", (*ends, len(nodes) - 1), {}, {"axis": 1}))
    return Compressed(Graph(tuple(nodes), (1, 5, 5)), tensors, {})


def codes(rng: np.random.Generator, *shape: int) -> Quantized:
    return Quantized((rng.integers(-2, 3, shape) * (rng.random(shape) < 0.5)).astype(np.int32), 0.25)


def test_what_is_passed_by_is_frozen() -> None:
    """If this fails, give the new list to a new version: files of the old ones decode by the old one."""
    assert all(layout.passed_by(version) == PASSED.keys() for version in (2, 3, 4))


def test_golden_layouts() -> None:
    """Every linear layer of the file, coded in context behind another operation, decodes to the same integers."""
    network, wanted = file.read(GOLDEN), branches()
    assert network.graph == wanted.graph
    for name, tensor in wanted.tensors.items():
        found = network.tensors[name]
        assert np.array_equal(file.dense(found), file.dense(tensor)), name
    places = layout.layouts(wanted.graph, file.shapes_of(wanted), 4)
    assert {places[f"{op}.linear"] for op in PASSED} == {(2, 4, 3, 3)}
    assert {places[f"{op}.linear"][2:] for op in OFFERED if op in PLAIN} == {(1, 1)}
    assert places["pixels"] == (2, 1, 5, 5)


def test_another_layout_is_another_stream() -> None:
    """So the golden file would notice a list that has become shorter or longer."""
    wanted = branches()
    shapes = file.shapes_of(wanted)
    places = layout.layouts(wanted.graph, shapes, 4)
    for op in OFFERED:
        name = f"{op}.linear"
        other = layout.plain(shapes[name]) if op in PASSED else (2, 4, 3, 3)
        if np.prod(other) == np.prod(places[name]):
            one, another = (
                streams.encode({name: wanted.tensors[name].codes}, {name: place}, several=False)[0]
                for place in (places[name], other)
            )
            assert one != another, op


def test_layouts_take_linear_time() -> None:
    """A chain that every linear layer would be followed back through: hours where each walks by itself."""
    shapes, nodes = {}, [Node("input"), *(Node("relu", (i,)) for i in range(40_000))]
    for index in range(20_000):
        nodes.append(Node("linear", (40_000,), {"weight": f"w{index}"}))
        shapes[f"w{index}"] = (2, 2)
    started = time.process_time()
    assert len(layout.layouts(Graph(tuple(nodes), (2,)), shapes)) == 20_000
    assert time.process_time() - started < 5
