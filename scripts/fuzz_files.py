"""Files, run folders, studies, weights as somebody hostile would send them: each must end in a result or in one line.

    python scripts/fuzz_files.py --inputs 100000

Valid files are made here (.pcn files of all versions and operations, run folders, checkpoints, weights, studies) and
changed field by field, with a checksum that fits, or nothing would be looked at. Every input is read; what can be read
is run by torch and by numpy, evaluated and, some of it, exported, compressed or gone on with, under a limit of time
and memory, in a process of its own that is begun anew when it dies. What is neither a result nor one line goes, the
smallest of its kind, to `--keep`; its number with the same `--seed` makes it again (`--only`). `--smoke` tries 60.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from safetensors import safe_open

from pyro_compress.cli.commands import OUT_OF_MEMORY, run_script
from pyro_compress.compression.search import compress, to_module
from pyro_compress.compression.target import Goal
from pyro_compress.data.splits import load_splits
from pyro_compress.deploy.export import EXPORTERS, Members, Request, export
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.weights import put_weights, read_weights
from pyro_compress.pcn import codec, file, header, runner, sections
from pyro_compress.runs.config import read_config
from pyro_compress.runs.evaluation import evaluate_target
from pyro_compress.runs.folder import load_run, unfinished
from pyro_compress.runs.run import Keeping, fit_run
from pyro_compress.settings import FitConfig, tupled
from pyro_compress.studies import plan as studies
from pyro_compress.studies.results import read_results
from pyro_compress.training.checkpoint import Interrupted, Keeper
from pyro_compress.training.history import read_history
from pyro_compress.tuning.plan import read_plan
from pyro_compress.types import Compressed, Quantized

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SECONDS, MEBIBYTES = 20, 2048
"""Of computing per input, and of memory above what the process begins with."""
GOOD = ("result", "one line")
RATE = {"onnx": 0.1, "pt2": 0.01, "c": 0.03, "safetensors": 0.1, "folder": 0.1, "evaluate": 0.2, "slow": 0.04}
"""Share of the inputs that could be read which go through each of the slower parts."""

# --- valid files ------------------------------------------------------------------------------------------------------

ONE = {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
FLAT = ["reshape", [-1], {}, {"shape": [64]}]
HEAD = ["linear", [-1], {"weight": "head.weight", "bias": "head.bias"}, {}]
POINTWISE = [
    ("relu", {}), ("tanh", {}), ("sigmoid", {}), ("silu", {}), ("hardswish", {}), ("hardsigmoid", {}), ("softplus", {}),
    ("gelu", {"tanh": False}), ("leaky_relu", {"slope": 0.1}), ("elu", {"alpha": 1.0, "scale": 1.0}), ("mish", {}),
    ("sin", {}), ("scale", {"factor": 2.0, "offset": 0.5}), ("clip", {"low": 0.0, "high": 6.0}),
]  # fmt: skip
CONV = ["conv2d", [0], {"weight": "c.weight", "bias": "c.bias"}, ONE | {"padding": [[1, 1], [1, 1]], "groups": 1}]
NORM = ("weight", "bias", "running_mean", "running_var")
SHAPES = {"c.weight": [4, 1, 3, 3], "c.bias": [4], "head.bias": [10]}
NETWORKS: list[tuple[list[Any], dict[str, list[int]]]] = [
    ([FLAT, *[[op, [-1], {}, told] for op, told in POINTWISE], HEAD], {"head.weight": [10, 64], "head.bias": [10]}),
    (
        [
            CONV, ["batch_norm", [-1], {role: f"b.{role}" for role in NORM}, {"eps": 1e-5}],
            ["prelu", [-1], {"weight": "p.weight"}, {}], ["group_norm", [-1], {}, {"groups": 2, "eps": 1e-5}],
            ["pad", [-1], {}, {"sizes": [1, 1, 1, 1], "mode": "reflect"}],
            ["max_pool", [-1], {}, {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1]}],
            ["avg_pool", [-1], {}, {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0]}],
            ["slice", [-1], {}, {"axis": 2, "start": 0, "stop": 4, "step": 1}],
            ["amax", [-1], {}, {"axes": [3], "keepdim": True}],
            ["mean", [-1], {}, {"axes": [2, 3]}], ["softmax", [-1], {}, {"axis": 1}], HEAD,
        ],
        SHAPES | {f"b.{role}": [4] for role in NORM} | {"p.weight": [4], "head.weight": [10, 4]},
    ),
    (
        [
            ["reshape", [0], {}, {"shape": [8, 8]}],
            ["layer_norm", [1], {"weight": "n.weight", "bias": "n.bias"}, {"eps": 1e-5}],
            ["linear", [2], {"weight": "q.weight"}, {}], ["attention", [3, 2, 2], {}, {"causal": False, "scale": None}],
            ["permute", [4], {}, {"axes": [2, 1]}], ["matmul", [4, 5], {}, {}],
            ["constant", [0], {"value": "v"}, {"shape": [8, 8]}],
            ["add", [6, 7], {}, {}], ["subtract", [8, 7], {}, {}], ["multiply", [9, 8], {}, {}],
            ["sigmoid", [10], {}, {}],
            ["divide", [10, 11], {}, {}], ["concat", [12, 7], {}, {"axis": 1}],
            ["select", [13], {}, {"axis": 1, "index": 15}],
            ["linear", [14], {"weight": "head.weight", "bias": "head.bias"}, {}],
            ["log_softmax", [15], {}, {"axis": 1}],
            ["mixture", [15, 16], {}, {}],
        ],
        {"n.weight": [8], "n.bias": [8], "q.weight": [8, 8], "v": [1, 8, 8], "head.weight": [10, 8], "head.bias": [10]},
    ),
]  # fmt: skip
META = {"prior": "horseshoe", "data": "digits", "seed": 0, "parameters_total": 700, "criterion": "snr", "limit": 100}


def document(number: int) -> dict[str, Any]:
    """A header of a valid file, spelled out."""
    nodes, shapes = NETWORKS[number]
    told = [
        [op, [index if i < 0 else i for i in inputs], dict(p), dict(a)]
        for index, (op, inputs, p, a) in enumerate(nodes)
    ]
    tensors = [[name, list(shape), int(len(shape) > 1)] for name, shape in shapes.items()]
    return {"graph": {"input": [1, 8, 8], "nodes": told}, "tensors": tensors, "meta": dict(META)}


def encoded(told: Any, version: int, chance: random.Random) -> bytes:
    """A file with this header, and tensors of the shapes that it declares."""
    text = json.dumps(told).encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, 0, header.DICTIONARIES.get(version, (header.DICTIONARY,))[0])
    packed = packer.compress(text) + packer.flush()
    try:
        tensors = {str(name): _values(shape, quantized, chance) for name, shape, quantized in told["tensors"]}
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        tensors = {}
    if version == 1:
        body = b"".join(codec.varint(len(part)) + part for part in map(_first, tensors.values()))
        return sealed(file.MAGIC + b"\x01" + struct.pack("<I", len(packed)) + packed + body)
    body = sections.write(tensors, {}, False)[0]
    return sealed(file.MAGIC + bytes([version]) + codec.varint(0) + codec.varint(len(packed)) + packed + body)


def _values(shape: list[int], quantized: Any, chance: random.Random) -> Quantized | np.ndarray:
    size = int(np.prod([min(int(n), 1 << 20) for n in shape], dtype=float))
    if not 0 <= size <= 1 << 14:
        raise ValueError(f"{size} values")
    values = np.random.default_rng(chance.randrange(1 << 30)).integers(-3, 4, shape).astype(np.int32)
    return Quantized(values, 0.25) if quantized else (abs(values) / 4).astype(np.float32)


def _first(tensor: Quantized | np.ndarray) -> bytes:
    if isinstance(tensor, Quantized):
        return struct.pack("<f", tensor.step) + codec.encode(tensor.codes)
    return tensor.astype("<f4").tobytes()


def sealed(body: bytes) -> bytes:
    """With a checksum that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


# --- changes ----------------------------------------------------------------------------------------------------------

TEXTS = (
    "", "a", "head.weight", "forward", "a..b", "../../x", "/tmp/x", "\x1b[2J", "=1+1", "a\nb", "\ud800", "__class__",
    "x" * 300,
    'w"+str(__import__("os").system("true"))+"', "linear", "conv2d", "reshape", "digits", "none", "nan", "%s",
    "{0}", "mlp",
    "<script>", "*/", "training", "0", "head", "a\x00b", "regression", "input",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 5, 7, 8, 10, 64, 255, 1 << 20, 1 << 31, 1 << 40, 1 << 63, 10**30, 10**400, 0.0, -1.5, 0.5,
    1e-45, 1e300,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a document lie."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*before, key)
        yield from paths(inner, (*before, key))


def value_for(old: Any, chance: random.Random) -> Any:
    """What takes a value's place: often something near it."""
    if type(old) is int and chance.random() < 0.6:
        return old + chance.choice((-2, -1, 1, 2, old))
    pools: tuple[Callable[[], Any], ...] = (
        lambda: chance.choice(NUMBERS), lambda: chance.choice(TEXTS), lambda: chance.choice((None, True, False)),
        lambda: chance.choice(([], {}, [[]], [0], [None], {"a": 1}, [1, 2, 3], [old], [[1, 1], [1, 1]])),
    )  # fmt: skip
    near = {int: 0, float: 0, str: 1, bool: 2, list: 3, dict: 3}.get(type(old), 0)
    return pools[near if chance.random() < 0.6 else chance.randrange(4)]()


def changed(told: Any, chance: random.Random) -> None:
    """Change a document in one to three places."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(paths(told))
        if not places:
            return
        *way, key = chance.choice(places)
        parent = told
        for step in way:
            parent = parent[step]
        kind = chance.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[chance.choice(TEXTS)] = parent.pop(key)
        elif kind == 1:
            parent.insert(key, json.loads(json.dumps(parent[key])))
        elif kind == 2:
            other = chance.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[key], parent[other] = parent[other], parent[key]
        else:
            parent[key] = value_for(parent[key], chance)


def hurt(data: bytes, chance: random.Random) -> bytes:
    """Change bytes."""
    body = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(4, len(body) - 1), len(body)) if len(body) > 1 else 0
        kind = chance.randrange(5)
        if kind == 0:
            body[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            body[at : at + 1] = bytes([chance.choice((0, 1, 127, 128, 240, 241, 254, 255))])
        elif kind == 2:
            del body[max(at, 8) :]
        elif kind == 3:
            body[at:at] = bytes([255] * chance.randint(1, 5) + [chance.randrange(128)])  # a huge number
        else:
            body[at : at + chance.randint(1, 20)] = chance.randbytes(chance.randint(1, 20))
    return bytes(body)


def changed_tensors(path: Path, chance: random.Random, key: str | None = "pyro_compress") -> None:
    """Change what a safetensors file says or holds."""
    from safetensors.torch import save

    if chance.random() < 0.15:
        path.write_bytes(hurt(path.read_bytes(), chance))
        return
    with safe_open(path, "pt") as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}
        told = json.loads(source.metadata()[key]) if key else {}
    if key and chance.random() < 0.6:
        changed(told, chance)
    else:
        name = chance.choice(sorted(tensors))
        old = tensors.pop(name)
        new = chance.choice((
            lambda: None, lambda: old * float("nan"), lambda: old * float("inf"), lambda: -old.abs(), lambda: old * 0,
            lambda: old.double(), lambda: old.to(torch.int64), lambda: old.flatten(), lambda: old[..., :1],
            lambda: old[:0],
            lambda: old[None], lambda: old.bool(), lambda: old * 1e30,
            lambda: old.T.contiguous() if old.dim() == 2 else old + 1,
            lambda: torch.zeros(0, 1 << 40), lambda: old.half(), lambda: torch.cat([old, old]) if old.dim() else old,
        ))()  # fmt: skip
        new_name = name if chance.random() < 0.8 else chance.choice(TEXTS[:-4]).encode("ascii", "ignore").decode()
        if new is not None:
            tensors[new_name] = new.contiguous()
    path.write_bytes(save(tensors, {key: json.dumps(told)} if key else None))


def changed_toml(path: Path, chance: random.Random) -> None:
    """Change a TOML file."""
    import tomllib

    if chance.random() < 0.1:
        path.write_bytes(hurt(path.read_bytes(), chance))
        return
    told = tomllib.loads(path.read_text())
    changed(told, chance)
    with contextlib.suppress(TypeError, ValueError, AttributeError, RecursionError):
        path.write_bytes(tomli_w.dumps(told).encode("utf-8", "surrogatepass"))


# --- kinds of input: (seeds, place, chance) -> what is then done with it


def pcn(seeds: Path, place: Path, chance: random.Random) -> None:
    """A compressed file, read and taken everywhere."""
    path = place / "a.pcn"
    if chance.random() < 0.2:
        golden = chance.choice(sorted(GOLDEN.glob("*.pcn"))).read_bytes()
        path.write_bytes(sealed(hurt(golden[:-4], chance)))
    else:
        told = document(chance.randrange(len(NETWORKS)))
        changed(told, chance)
        data = encoded(told, chance.choice((1, 2, 3, 4, 4)), chance)
        path.write_bytes(data if chance.random() < 0.9 else sealed(hurt(data[:-4], chance)))
    network = file.read(path)
    run_both(network)
    for name in EXPORTERS:
        if chance.random() < RATE[name.removeprefix(".")]:
            export(path, place / f"out{name}" if name.startswith(".") else place / "out", Request())
    if chance.random() < RATE["evaluate"]:
        evaluate_target(path, None, "test", device="cpu", threads=1)


def run_both(network: Compressed) -> None:
    x = np.random.default_rng(0).random((2, *network.graph.input_shape)).astype(np.float32)
    one, other = to_module(network)(torch.from_numpy(x)).detach().numpy(), runner.run(network, x)
    assert one.shape == other.shape, f"torch {one.shape}, numpy {other.shape}"
    if np.isfinite(one).all() and np.abs(one).max() < 1e4 and not steep(network):
        assert np.allclose(one, other, rtol=1e-2, atol=1e-3 * (1 + np.abs(one).max())), "torch and numpy differ"


def steep(network: Compressed) -> bool:
    """Whether rounding may grow without bound in it."""
    return any(node.op in ("divide", "sin", "batch_norm", "layer_norm", "group_norm") for node in network.graph.nodes)


def folder(seeds: Path, place: Path, chance: random.Random) -> None:
    """A run folder, read, evaluated, drawn from, compressed, started from."""
    from pyro_compress.bayes.marginals import networks, read_marginals
    from pyro_compress.training.snapshots import read_snapshots

    run = place / "run"
    shutil.copytree(seeds / chance.choice(("horseshoe", "none")), run)
    name = chance.choice(sorted(path.name for path in run.iterdir()))
    if name == "history.jsonl" and chance.random() < 0.8:
        told = json.loads((run / name).read_text().splitlines()[0])
        changed(told, chance)
        (run / name).write_text(json.dumps(told) + "\n" + chance.choice(("", "[]", "3", "{}", '{"a": 1}')))
    elif name.endswith(".toml"):
        changed_toml(run / name, chance)
    elif name.endswith(".safetensors"):
        changed_tensors(run / name, chance, None if name.startswith("snapshots") else "pyro_compress")
    else:
        (run / name).write_bytes(hurt((run / name).read_bytes(), chance))
    loaded = load_run(run)
    read_history(run)
    evaluate_target(run, None, "validation", device="cpu", threads=1)
    if (run / "snapshots.safetensors").is_file():
        read_snapshots(run / "snapshots.safetensors", loaded.posterior.layers)
    if (run / "guide.safetensors").is_file():
        drawn = networks(
            loaded.posterior, read_marginals(run / "guide.safetensors", loaded.config, loaded.posterior), 1, 0
        )
        next(iter(drawn))(torch.zeros(2, *loaded.posterior.graph.input_shape))
    if chance.random() < RATE["slow"]:
        compress(loaded.posterior, loaded.splits(), Goal(sparsity=0.5))
    if chance.random() < RATE["slow"]:
        export(run, place / "out.safetensors", Request(), members=Members(2, 0.5, 0))
    if chance.random() < RATE["slow"]:
        fit_run(small("none", init=str(run)), place / "fitted")


def checkpoint(seeds: Path, place: Path, chance: random.Random) -> None:
    """An unfinished fit, gone on with."""
    out = place / "run"
    shutil.copytree(seeds / chance.choice((".h.unfinished", ".n.unfinished")), unfinished(out))
    path = chance.choice(sorted([*unfinished(out).glob("*.toml"), *unfinished(out).glob("*.safetensors")]))
    (changed_toml if path.suffix == ".toml" else changed_tensors)(path, chance)
    config = FitConfig(**tupled(read_config(unfinished(out) / "config.toml")))
    if (config.epochs or 0) <= 3 and max(config.hidden) <= 64:
        fit_run(config, out, keeping=Keeping(resume=True))


def toml(seeds: Path, place: Path, chance: random.Random) -> None:
    """A study, a search, a configuration, results."""
    name = chance.choice(("study.toml", "search.toml", "config.toml", "study.json"))
    path = place / name
    shutil.copy(seeds / name, path)
    if name == "study.json":
        told = json.loads(path.read_text())
        changed(told, chance)
        path.write_text(json.dumps(told))
        read_results(place)
        return
    changed_toml(path, chance)
    if name == "study.toml":
        studies.plan(studies.read_study(path), "", "cpu", 1)
    elif name == "search.toml":
        read_plan(path, "", "cpu", 1)
    else:
        read_config(path)


def weights(seeds: Path, place: Path, chance: random.Random) -> None:
    """Weights, put into a network."""
    path = place / chance.choice(("a.safetensors", "a.pt"))
    shutil.copy(seeds / path.name, path)
    if path.suffix == ".pt":
        path.write_bytes(hurt(path.read_bytes(), chance))
    else:
        changed_tensors(path, chance, None)
    put_weights(build_net("mlp", (1, 8, 8), 10, (6,)), read_weights(str(path)), str(path), "mlp")


KINDS: dict[str, tuple[Callable[[Path, Path, random.Random], None], int]] = {
    "pcn": (pcn, 10), "folder": (folder, 4), "toml": (toml, 3), "weights": (weights, 2), "checkpoint": (checkpoint, 1),
}  # fmt: skip
"""Kind -> what is done, and how many of 20 inputs are of it."""

# --- running ----------------------------------------------------------------------------------------------------------


def small(prior: str, **options: Any) -> FitConfig:
    return FitConfig(prior=prior, data="digits", limit=60, hidden=(6,), epochs=1, device="cpu", threads=1, **options)


def write_seeds(seeds: Path) -> None:
    """Valid run folders, unfinished fits, studies, weights."""
    from safetensors.torch import save_file

    fit_run(small("horseshoe", pretrain_epochs=0), seeds / "horseshoe", keeping=Keeping(snapshots=True))
    fit_run(small("none"), seeds / "none")
    for name, config in (("h", small("horseshoe", pretrain_epochs=0)), ("n", small("none"))):
        real = Keeper.after_step

        def stop(self: Keeper, finished: int, take: Callable[[], Any], real: Any = real) -> None:
            self.stop.set()
            real(self, finished, take)

        Keeper.after_step = stop  # type: ignore[method-assign]
        with contextlib.suppress(Interrupted):
            fit_run(config, seeds / name)
        Keeper.after_step = real  # type: ignore[method-assign]
    fit = {"hidden": [6], "epochs": 1, "limit": 60, "lr": 1e-3}
    method = {"name": "a", "prior": "none", "choose": {"lr": [1e-3]}, "sparsities": [0.5]}
    study = {"name": "s", "datasets": ["digits"], "networks": ["mlp"], "sparsities": [0, 0.5], "seeds": [0], "fit": fit}
    (seeds / "study.toml").write_text(
        tomli_w.dumps(study | {"methods": [method], "out-of-domain": {"digits": "digits"}})
    )
    space = {"fit": {"lr": {"low": 1e-3, "high": 1e-2, "log": True}}, "compress": {"kept": {"low": 0.1, "high": 0.5}}}
    search = {
        "name": "s",
        "trials": 2,
        "fidelities": [1, 2],
        "fit": fit | {"data": "digits", "prior": "none"},
        "space": space,
    }
    more = {"compress": {"coarseness": 0.5}, "reference": [{"name": "a", "bytes": 1, "error": 0.1}], "bound": 0.5}
    (seeds / "search.toml").write_text(tomli_w.dumps(search | more))
    shutil.copy(seeds / "none/config.toml", seeds / "config.toml")
    row = dict.fromkeys(("sparsity", "accuracy", "nll_nats", "ece", "train_seconds"), 0.5)
    row |= dict.fromkeys(("dataset", "network", "method", "variant"), "a") | {"seed": 0, "config_hash": "0123456789ab"}
    runs = {"a": {"config": fit, "versions": {"a": "1"}, "machine": {"a": "1"}, "rows": [row]}}
    (seeds / "study.json").write_text(json.dumps({"runs": runs, "failures": {"b": "c"}}))
    state = build_net("mlp", (1, 8, 8), 10, (6,)).state_dict()
    save_file(state, seeds / "a.safetensors")
    torch.save(state, seeds / "a.pt")


class OutOfTime(BaseException):
    """An input took too long."""


def attempt(kind: str, seeds: Path, place: Path, chance: random.Random) -> tuple[str, str]:
    """What became of an input, and where it went wrong."""

    def late(*_: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        KINDS[kind][0](seeds, place, chance)
        return "result", ""
    except (ValueError, OSError) as error:
        return ("one line", "") if str(error) else ("traceback", "an error without a message")
    except OutOfTime as error:
        return "timeout", spot(error)
    except BaseException as error:
        memory = isinstance(error, MemoryError) or any(told in str(error) for told in OUT_OF_MEMORY)
        return "memory" if memory else "traceback", f"{type(error).__name__}: {str(error)[:200]} {spot(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def spot(error: BaseException) -> str:
    """The last lines of ours on the way to an error."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if "pyro_compress" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(own[-3:]))


def kind_of(chance: random.Random, only: str) -> str:
    return only or chance.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]


def work(numbers: range, seeds: Path, options: argparse.Namespace, pipe: int) -> None:
    """Try inputs in a process of its own, and tell of each through a pipe."""
    begun = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (begun + (MEBIBYTES << 20),) * 2)
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    with os.fdopen(pipe, "w") as told:
        for number in numbers:
            chance = random.Random(f"{options.seed}/{number}")
            kind = kind_of(chance, options.kind)
            with tempfile.TemporaryDirectory() as place:
                outcome, detail = attempt(kind, seeds, Path(place), chance)
                if outcome not in GOOD:
                    keep(Path(place), options.keep, f"{kind}-{number}", detail)
            told.write(json.dumps([number, kind, outcome, detail]) + "\n")
            told.flush()


def keep(place: Path, folder: Path, name: str, detail: str) -> None:
    """Keep an input, unless a smaller one failed at the same spot."""
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    target = folder / f"{zlib.crc32(detail.partition(' ')[0].encode() + detail.rpartition(' ')[2].encode()):08x}"
    if target.is_dir() and sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) <= size:
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(place, target, dirs_exist_ok=True)
    (target / "WHAT").write_text(f"{name}\n{detail}\n")


def tried(numbers: range, seeds: Path, options: argparse.Namespace) -> Iterator[tuple[int, str, str, str]]:
    """Outcomes of all inputs; an input whose process dies is one too."""
    at = numbers.start
    while at < numbers.stop:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            work(range(at, min(at + 500, numbers.stop)), seeds, options, writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            for line in told:
                number, kind, outcome, detail = json.loads(line)
                at = number + 1
                yield number, kind, outcome, detail
        if code := os.waitpid(child, 0)[1]:
            yield at, kind_of(random.Random(f"{options.seed}/{at}"), options.kind), "crash", f"wait status {code}"
            at += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="end after so many, however few inputs that are")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, default=None, help="number of the one input to try, its error shown")
    parser.add_argument("--kind", choices=list(KINDS), default="", help="inputs of this kind only")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzzed"), help="folder for what fails, the smallest of its kind"
    )
    parser.add_argument("--smoke", action="store_true", help="60 inputs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.keep = options.keep.resolve()
    counts, started = Counter[tuple[str, str]](), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        if (child := os.fork()) == 0:  # torch's gradients and processes that fork do not go together
            write_seeds(Path(place))
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise ValueError("the valid files could not be made")
        seeds = Path(place)
        load_splits("digits")
        if options.only is not None:
            chance = random.Random(f"{options.seed}/{options.only}")
            KINDS[kind_of(chance, options.kind)][0](seeds, Path(tempfile.mkdtemp()), chance)
            return
        for number, kind, outcome, detail in tried(
            range(options.first, options.first + (60 if options.smoke else options.inputs)), seeds, options
        ):
            counts[kind, outcome] += 1
            if time.perf_counter() - started > 60 * options.minutes:
                break
            if outcome not in GOOD:
                print(f"{number} {kind}: {outcome}: {detail}", flush=True)
    minutes = (time.perf_counter() - started) / 60
    for kind in KINDS:
        told = {outcome: count for (one, outcome), count in sorted(counts.items()) if one == kind}
        print(f"{kind:<12}" + ", ".join(f"{count:,} {outcome}" for outcome, count in told.items()))
    failed = sum(count for (_, outcome), count in counts.items() if outcome not in GOOD)
    print(f"{sum(counts.values())} inputs in {minutes:.1f} minutes, {failed} neither a result nor one line")
    sys.exit(failed > 0)


if __name__ == "__main__":
    run_script(main)
