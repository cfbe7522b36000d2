"""The kinds of inputs: each is made, read, and taken to wherever such a thing is used.

A kind is a generator function `(seeds, place, chance)`. It yields nothing once when its input passed the gate (a file,
folder or table was read), and after that the name of every consumer that had it, with "!" before those that refused.
"""

import contextlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fuzzing.attempts import Kind, Share, Step
from fuzzing.changes import (
    changed,
    changed_archive,
    changed_tensors,
    changed_toml,
    hurt,
    hurt_text,
)
from fuzzing.consumers import LIMITS, read, taken_everywhere
from fuzzing.encoding import foreign, own, sealed, template
from fuzzing.keeping import keep, passed
from fuzzing.networks import META, NETWORKS, listed, made_up
from fuzzing.seeds import GOLDEN, small
from pyro_compress.compression.search import compress
from pyro_compress.data.splits import load_examples, load_splits, preprocessing
from pyro_compress.data.unlabelled import load_inputs
from pyro_compress.deploy import torch_files
from pyro_compress.deploy.export import export
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.weights import put_weights, read_weights
from pyro_compress.pcn import header
from pyro_compress.runs.config import read_config
from pyro_compress.runs.evaluation import evaluate
from pyro_compress.runs.folder import load_run, unfinished, unfinished_config
from pyro_compress.runs.info import info
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import Goal, ReadConfig
from pyro_compress.settings.export import ExportConfig, Members
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.studies import plan as studies
from pyro_compress.studies.results import read_results
from pyro_compress.training.history import read_history
from pyro_compress.tuning.plan import read_plan
from pyro_compress.types import Graph, Node

SLOW = 0.04
"""Share of the run folders that are compressed, drawn from, started from."""

# --- .pcn files: how their bytes come about


def _document(chance: random.Random) -> dict[str, object]:
    """A valid network, changed so that it still is one."""
    document = listed(chance.randrange(len(NETWORKS))) if chance.random() < 0.4 else made_up(chance)
    keep(document, chance, chance.choice((0, 1, 2, 3, 6)))
    return document


def _kept(chance: random.Random) -> bytes:
    document = _document(chance)
    graph, _ = passed(document)
    return own(graph, document, chance) if chance.random() < 0.5 else foreign(document, chance.randint(1, 4), chance)


def _fields(chance: random.Random) -> bytes:
    document = _document(chance)
    if chance.random() < 0.3:
        graph, _ = passed(document)
        shapes = {name: tuple(shape) for name, shape, _ in document["tensors"]}
        told = header.shortened(graph, shapes) | {"meta": document["meta"]}
        told["graph"] = {
            key: document["graph"][key] for key in ("operations", "kind") if key in document["graph"]
        } | told["graph"]
        told = json.loads(json.dumps(told))
        changed(told, chance)
        return foreign(document, 4, chance, json.dumps(told).encode())
    changed(document, chance)
    return foreign(document, chance.choice((1, 2, 3, 4, 4, 6)), chance)


def _metadata(chance: random.Random) -> bytes:
    document = _document(chance)
    changed(document["meta"], chance)
    return foreign(document, 4, chance)


def _sections(chance: random.Random) -> bytes:
    return foreign(_document(chance), chance.choice((2, 3, 4, 4, 6)), chance, broken=True)


def _text(chance: random.Random) -> bytes:
    document = _document(chance)
    return foreign(document, chance.randint(1, 4), chance, hurt_text(json.dumps(document).encode(), chance))


def _template(chance: random.Random) -> bytes:
    meta = dict(META)
    if chance.random() < 0.3:
        changed(meta, chance)
    return template(chance, meta)


def _bytes(chance: random.Random) -> bytes:
    whole = chance.choice(GOLDENS) if chance.random() < 0.6 else _kept(chance)
    return sealed(hurt(whole[:-4], chance))


GOLDENS = [path.read_bytes() for path in sorted(GOLDEN.glob("*.pcn"))]
WAYS: dict[str, tuple[Callable[[random.Random], bytes], int]] = {
    "pcn, kept valid": (_kept, 24), "pcn, fields": (_fields, 30), "pcn, metadata": (_metadata, 6),
    "pcn, sections": (_sections, 14), "pcn, text": (_text, 5), "pcn, template": (_template, 5),
    "pcn, bytes": (_bytes, 9),
}  # fmt: skip
"""How a file is made, and how many of 100 inputs are made so."""


def _pcn(made: Callable[[random.Random], bytes]) -> Kind:
    def kind(seeds: Path, place: Path, chance: random.Random) -> Iterator[Step]:
        (path := place / "in" / "a.pcn").write_bytes(made(chance))
        found = read(path, place / "out")
        yield None
        yield from taken_everywhere(found, chance)

    return kind


# --- folders, studies, weights, data


def folder(seeds: Path, place: Path, chance: random.Random) -> Iterator[Step]:
    """A run folder, read, evaluated, drawn from, compressed, started from."""
    run = place / "in" / "run"
    shutil.copytree(seeds / chance.choice(("horseshoe", "none")), run)
    _change_one(run, chance)
    loaded = load_run(run)
    yield None
    read_history(run)
    json.dumps(info(run).to_dict())
    yield "info"
    evaluate(run, None, "validation", device="cpu", threads=1)
    yield "evaluate"
    if (run / "guide.safetensors").is_file():
        from pyro_compress.bayes.marginals import networks, read_marginals
        from pyro_compress.training.snapshots import read_snapshots

        if (run / "snapshots.safetensors").is_file():
            read_snapshots(run / "snapshots.safetensors", loaded.posterior.layers)
        marginals = read_marginals(run / "guide.safetensors", loaded.config, loaded.posterior)
        drawn = networks(loaded.posterior, marginals, 1, 0)
        next(iter(drawn))(torch.zeros(2, *loaded.posterior.graph.input_shape))
        yield "draws"
    if chance.random() < SLOW:
        compress(loaded.posterior, loaded.splits(), Goal(sparsity=0.5))
        yield "compress"
    if chance.random() < SLOW:
        export(run, place / "out" / "out.safetensors", ExportConfig(members=Members(2, 0.5)))
        yield "export --ensemble"
    if chance.random() < SLOW:
        fit_run(small("none", init=str(run)), place / "out" / "fitted")
        yield "fit --init"


def _change_one(run: Path, chance: random.Random) -> None:
    """Change one file of a run folder."""
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


def checkpoint(seeds: Path, place: Path, chance: random.Random) -> Iterator[Step]:
    """An unfinished fit, gone on with."""
    out = place / "out" / "run"
    shutil.copytree(seeds / chance.choice((".h.unfinished", ".n.unfinished")), unfinished(out))
    path = chance.choice(sorted([*unfinished(out).glob("*.toml"), *unfinished(out).glob("*.safetensors")]))
    (changed_toml if path.suffix == ".toml" else changed_tensors)(path, chance)
    config = unfinished_config(out)
    yield None
    if (config.epochs or 0) <= 3 and max(config.hidden) <= 64:
        fit_run(config, out, checkpointing=CheckpointConfig(resume=True))
        yield "fit --resume"


def toml(seeds: Path, place: Path, chance: random.Random) -> Iterator[Step]:
    """A study, a search, a configuration, results."""
    name = chance.choice(("study.toml", "search.toml", "config.toml", "study.json"))
    path = place / "in" / name
    shutil.copy(seeds / name, path)
    if name == "study.json":
        told = json.loads(path.read_text())
        changed(told, chance)
        path.write_text(json.dumps(told))
        read_results(path.parent)
        yield None
        return
    changed_toml(path, chance)
    if name == "study.toml":
        studies.plan(studies.read_study(path), "", "cpu", 1)
    elif name == "search.toml":
        read_plan(path, "", "cpu", 1)
    else:
        read_config(path)
    yield None


class Command:
    """What a pickle runs that is not only read."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch EXECUTED",)


def weights(seeds: Path, place: Path, chance: random.Random) -> Iterator[Step]:
    """Weights, put into a network."""
    path = place / "in" / chance.choice(("a.safetensors", "a.pt", "a.pt", "old.pt"))
    shutil.copy(seeds / path.name, path)
    if path.name == "a.pt" and chance.random() < 0.7:
        changed_archive(path, chance)
    elif path.suffix == ".pt" and chance.random() < 0.1:
        path.write_bytes(pickle.dumps({"a": Command(), "b": 1}, protocol=2))
    elif path.suffix == ".pt":
        path.write_bytes(hurt(path.read_bytes(), chance))
    else:
        changed_tensors(path, chance, None)
    net = build_net("mlp", (1, 8, 8), 10, (6,))
    found = read_weights(str(path), net.state_dict())
    yield None
    put_weights(net, found, str(path), "mlp")
    yield "fit --init"


def exports(seeds: Path, place: Path, chance: random.Random) -> Iterator[Step]:
    """A safetensors export: what it says of itself, and loaded in Python."""
    path = place / "in" / "export.safetensors"
    shutil.copy(seeds / path.name, path)
    changed_tensors(path, chance)
    with contextlib.suppress(ValueError):
        json.dumps(info(path).to_dict())
    network = torch_files.load_safetensors(path, LIMITS)
    yield None
    with contextlib.suppress(ValueError):
        network(torch.zeros(2, *network._captured_graph.input_shape))
    yield "torch"


def data(seeds: Path, place: Path, chance: random.Random) -> Iterator[Step]:
    """Arrays, tables, images."""
    name = chance.choice(("data.npz", "data.npz", "arrays", "table.csv", "table.csv", "table.parquet", "images"))
    path = place / "in" / name
    (shutil.copytree if (seeds / name).is_dir() else shutil.copy)(seeds / name, path)
    part = chance.choice(sorted(one for one in path.rglob("*") if one.is_file())) if path.is_dir() else path
    if name == "data.npz" and chance.random() < 0.7:
        changed_archive(part, chance)
    else:
        change = hurt_text if part.suffix in (".csv", ".npy") else hurt
        part.write_bytes(change(part.read_bytes(), chance))
    table = name.startswith("table")
    found = load_splits(str(path), reading=ReadConfig(target=("target",) if table else ()))
    yield None
    assert all(bool(torch.isfinite(part.x[:]).all()) for part in (found.train, found.test)), "inputs are not finite"
    yield "fit --data"
    if name != "arrays":
        graph = Graph((Node("input"),), found.input_shape)
        given = load_inputs(str(path), graph, preprocessing(found), ReadConfig())
        assert sum(len(one) for one in given.parts) == len(given.names), "rows and names differ"
        yield "predict"
    if name == "data.npz":
        load_examples(path)
        yield "evaluate --data"


KINDS: dict[str, Share] = {
    **{name: Share(_pcn(made), 10 * share) for name, (made, share) in WAYS.items()},
    "run folder": Share(folder, 25), "study, configuration": Share(toml, 20), "weights": Share(weights, 10),
    "export": Share(exports, 5), "data": Share(data, 8), "checkpoint": Share(checkpoint, 2),
}  # fmt: skip
FITTED = ("run folder", "checkpoint")
"""Those whose valid inputs take a fit."""
