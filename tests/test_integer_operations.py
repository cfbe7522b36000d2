"""Operations of sequences, volumes and images of another size in integer C: to the bit, and near the floats."""

import ctypes
from pathlib import Path

import integer_reference
import numpy as np
import pytest
from test_c_export import drawn, needs_compiler
from test_c_operations import CASES, NETWORKS, built, case
from test_integer_c import CAREFUL, agrees, library, stepped

from pyro_compress.deploy.c.library import PLAIN, shared
from pyro_compress.deploy.integer.arena import planned
from pyro_compress.deploy.integer.arithmetic import needed
from pyro_compress.deploy.integer.parts import parts_of
from pyro_compress.deploy.integer.source import APART, program
from pyro_compress.types import Compressed, Graph, Node

REFUSED = {
    "reduced": r"operation 'variance' behind parts\.0 is not supported in integer C; leave it out .* --integer",
    "words in a row": r"parts\.0 looks up numbers that are computed, .*: export without --integer",
}


@needs_compiler
@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_operations(name: str, tmp_path: Path) -> None:
    """On integers from the file, and on floats that are requantized; nothing is undefined."""
    agrees(case(name, True), tmp_path, options=CAREFUL)
    agrees(case(name, False), tmp_path, options=CAREFUL)


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, tmp_path: Path) -> None:
    agrees(built(name, True), tmp_path, near=0.03, options=CAREFUL)


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_integers_do_not_know_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parts_of(case(name, True))
    assert "\n" not in str(caught.value)


@needs_compiler
def test_tokens(tmp_path: Path) -> None:
    """They have the smallest type that holds them; one that the table does not have is taken for its last."""
    network = built("gru", True)
    made = library(stepped(network, drawn(network, 20)), tmp_path)
    assert made.kind is np.uint8
    assert "void n_run_int8(const uint8_t *input, int8_t *output);" in (tmp_path / "n.c").read_text()
    assert np.array_equal(made.run(np.full((1, 6), 200, np.uint8)), made.run(np.full((1, 6), 8, np.uint8)))


@needs_compiler
@pytest.mark.parametrize("rows", [255, 256, 257])
def test_as_many_tokens_as_a_byte_has(rows: int, tmp_path: Path) -> None:
    nodes = Node("input"), Node("embedding", (0,), {"weight": "e"}), Node("linear", (1,), {"weight": "w"})
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in (("e", (rows, 4)), ("w", (3, 4)))}
    agrees(Compressed(Graph(nodes, (5,), "int64"), tensors, {}), tmp_path, options=CAREFUL)


@needs_compiler
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("width", [0.01, 1.0, 8.0])
def test_shares_at_the_end(name: str, width: float, tmp_path: Path) -> None:
    """Half a step of the output's grid off what floats make of the same integers, and a ten thousandth."""
    nodes = Node("input"), Node("linear", (0,), {"weight": "w"}), Node(name, (1,), {}, {"axis": 1})
    network = Compressed(Graph(nodes, (10,)), {"w": width * np.eye(10, dtype=np.float32)}, {})
    steps = stepped(network, x := drawn(network, 200))
    made = library(steps, tmp_path, CAREFUL)
    codes = made.codes(x)
    before = integer_reference.layer(steps[0], codes.astype(int)[:, :, None, None])[:, :, 0, 0]
    logits = steps[0].grid.values(np.clip(before, -128, 127))
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = np.exp(logs) if name == "softmax" else logs
    found, out = steps[-1].out.values(made.run(codes)), steps[-1].out
    inside = (wanted > out.values(np.array(-128))) & (wanted < out.values(np.array(127)))
    assert np.abs(found - wanted)[inside].max() <= 0.5 * out.scale + 1.5e-4


@needs_compiler
def test_functions_of_fixed_point(tmp_path: Path) -> None:
    """The bounds that `arithmetic` states."""
    calls = "logistic(x) tangent(x) power(x) inverse_root(x, &x)"
    lines = [
        "int32_t l(int32_t x) { return logistic(x); }", "int32_t t(int32_t x) { return tangent(x); }",
        "int32_t p(int32_t x) { return power(x); }", "int32_t g(uint32_t x) { return logarithm(x); }",
        "double r(int64_t x)\n{\nint32_t s;\nconst int32_t v = inverse_root(x, &s);",
        "return v / 4096.0 / ((int64_t)1 << s);\n}",
    ]  # fmt: skip
    code = "\n".join([APART, *needed(calls + " logarithm(x)"), *lines])
    (tmp_path / "f.c").write_text(f"#include <stdint.h>\n{code}")
    made = shared(tmp_path / "f.c", PLAIN)
    made.r.restype = ctypes.c_double

    def error(function: str, x: np.ndarray, unit: float, wanted: np.ndarray) -> float:
        found = np.array([made[function](int(value)) for value in x]) / unit
        return float(np.abs(found - wanted).max())

    x = np.concatenate([np.arange(-50_000, 50_000, 7), [-(2**30), 2**30]])
    assert error("l", x, 32768, 0.5 + 0.5 * np.tanh(x / 8192)) < 3.4e-4
    assert error("t", x, 32768, np.tanh(x / 4096)) < 6.8e-4
    x = np.arange(0, 17 << 16, 101)
    assert error("p", x[x < 1 << 20], 65535, 2.0 ** (-x[x < 1 << 20] / 65536)) < 4e-5
    x = np.unique(np.geomspace(1, 2**32 - 1, 9000).astype(np.uint32)).astype(np.int64)
    assert error("g", x, 65536, np.log(x)) < 1.1e-4
    roots = [(value, made.r(ctypes.c_int64(int(value)))) for value in np.geomspace(1, 2.0**59, 500)]
    assert max(abs(found * np.sqrt(int(value)) - 1) for value, found in roots) < 2.0**-28


@needs_compiler
def test_memory_beside_the_arena_is_told(tmp_path: Path) -> None:
    """Cells of recurrent layers, and shares of attention, have 32 bits."""
    for name, work in (("states of an lstm", 8), ("states of a gru", 8), ("attention", 7)):
        network = case(name, True)
        steps = stepped(network, drawn(network, 20))
        arena, code = planned(steps), program(steps, "n").code
        assert arena.work == work
        assert f"#define N_ARENA {arena.bytes + 4 * work}\n" in code
        assert f"static int8_t arena[{arena.bytes}];\nstatic int32_t work[{work}];\n" in code


@needs_compiler
def test_functions_behind_a_recurrent_layer_leave_its_outputs_alone(tmp_path: Path) -> None:
    network = case("states of a gru", True)
    nodes = list(network.graph.nodes)
    place = next(i for i, node in enumerate(nodes) if node.op == "gru")
    head = [Node("tanh", (place,)), Node("linear", (place + 1,), nodes[place + 1].parameters)]
    changed = Compressed(Graph((*nodes[: place + 1], *head), network.graph.input_shape), network.tensors, {})
    steps = agrees(changed, tmp_path, options=CAREFUL)
    assert [step.op for step in steps] == ["gru", "copy", "layer"]
