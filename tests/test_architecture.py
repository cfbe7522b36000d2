"""docs/architecture.md and the floors of the modules, held against the import statements."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_compress

ROOT = Path(pyro_compress.__file__).parent
MODULES = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.rglob("*.py"))

FAMILIES = ("kept", "layers", "single", "norms", "pools", "moves", "resizing", "reductions", "sequences")
"""Modules of operations and of their rules; `several` reads two of them."""

# Each floor may import from the floors before it, and within itself only what SIDEWAYS names.
FLOORS = [
    {"foreign", "outputs", "runs/starting"},
    {
        "imports",
        "inputs",
        "length",
        "provenance",
        "settings/registries",
        "runs/slurm",
        "inspection/palette",
        "inspection/page_style",
    },
    {
        "types",
        "settings/declared",
        "scores",
        "machine",
        "inspection/page",
        "process_group",
        "locks",
        "atomic",
        "tensorfile",
        "doubts",
        "advance",
        "inspection/drawing",
    },
    {"placing", "settings/data"},
    {"kinds", "settings/compress", "settings/fit", "settings/studies", "settings/export"},
    {"settings/page"},
    {"places", "cli/values", "data/labels", "deploy/refusals"},
    {"graph/operations/row"},
    {"graph/operations/fits"},
    {
        f"graph/operations/{family}"
        for family in ("layers", "single", "norms", "pools", "moves", "resizing", "reductions", "sequences")
    },
    {"graph/operations/several"},
    {"graph/operations/table"},
    {"graph/operations/kept"},
    {
        "inspection/arviz_compat",
        "data/augment",
        "data/tasks",
        "data/datasets",
        "data/images",
        "data/layout",
        "data/preprocessing",
        "data/streaming",
        "data/table_files",
        "networks/checkpoints",
        "pcn/*",
    },
    {"graph/packing", "data/several"},
    {"graph/calls", "graph/convolution", "graph/faces/c", "graph/faces/c_text", "graph/faces/onnx", "graph/ir"},
    {"graph/faces/c_moves"},
    {"graph/faces/c_layers"},
    {"graph/rules/row"},
    {f"graph/rules/{family}" for family in FAMILIES},
    {"graph/rules/several"},
    {"graph/rules/table"},
    {"graph/keeping", "graph/changes", "graph/recurrence_shapes"},
    {"graph/idioms"},
    {"graph/reading", "graph/network"},
    {"graph/checked", "graph/statistics"},
    {"graph/lengths"},
    {"graph/capture"},
    {
        "data/tabular",
        "data/positions",
        "data/text",
        "data/held_out",
        "data/examples",
        "networks/composed",
        "networks/spelling",
        "training/minibatches",
        "training/history",
        "training/checkpoint",
        "training/settled",
    },
    {"data/npz", "data/masks"},
    {"data/folders", "data/outputs"},
    {"data/table_splits", "data/several_labels"},
    {
        "data/splits",
        "data/unlabelled",
        "networks/vision",
        "networks/sequences",
        "networks/attention",
        "networks/naming",
        "networks/normalized",
        "networks/outputs",
        "training/point",
        "training/callbacks",
    },
    {
        "networks/layered",
        "networks/bounded",
        "runs/posterior_file",
        "runs/predictions",
        "data/sources",
        "training/display",
    },
    {"networks/decoded", "metrics", "training/guards"},
    {"networks/nets", "networks/weights", "networks/fitted", "networks/standardized", "training/progress"},
    {"compression/channels", "compression/recurrence", "compression/held"},
    {"compression/axes"},
    {"compression/flow"},
    {"compression/sweep"},
    {"compression/prune", "compression/precision", "compression/shrink", "compression/code_length", "compression/uses"},
    {"compression/packing"},
    {
        "compression/order",
        "compression/target",
        "compression/rounding",
        "compression/fixed_point",
        "compression/curvature",
        "compression/quantization_aware",
    },
    {"compression/finetune", "compression/compensation", "compression/candidates"},
    {"compression/codebooks", "compression/repair", "training/surgery"},
    {"compression/calibrated"},
    {"training/sparse", "networks/draws", "compression/search", "bayes/*"},
    {
        "training/baselines",
        "training/laplace",
        "training/snapshots",
        "training/live",
        "compression/finetuned",
        "compression/compensated",
        "compression/curve",
        "compression/verdict",
    },
    {"compression/smallest"},
    {"compression/pipeline"},
    {"runs/config", "runs/budget"},
    {"runs/folder", "runs/command_budget"},
    {"runs/run", "runs/saved", "studies/tables", "runs/identity"},
    {"runs/answers", "runs/given", "runs/rehearsal", "runs/store", "runs/unlabelled"},
    {
        "runs/evaluation",
        "runs/post_training",
        "studies/plan",
        "inspection/summary",
        "inspection/restarts",
        "cli/commands",
        "deploy/*",
    },
    {"studies/results", "runs/info", "runs/prediction", "runs/in_memory", "runs/trainers"},
    {"runs/own_loops", "runs/trained"},
    {"cli/options", "studies/compare", "studies/figures", "inspection/readings", "studies/ranking", "runs/opened"},
    {"studies/study"},
    {"cli/ignored", "tuning/front", "tuning/published", "tuning/space"},
    {"tuning/plan", "tuning/reported"},
    {"tuning/trial", "tuning/storage"},
    {"tuning/workers"},
    {"tuning/outcome"},
    {"tuning/search"},
    {"cli/console", "inspection/plots"},
    {"inspection/gallery", "inspection/anatomy", "inspection/tradeoff", "inspection/file_plots"},
    {"inspection/filed"},
    {"studies/page"},
    {"inspection/report"},
    {"runs/ways"},
    {"runs/doctor"},
    {"cli/sources"},
    {
        "cli/fit",
        "cli/compress",
        "cli/compare",
        "cli/deploy",
        "cli/doctor",
        "cli/info",
        "cli/inspect",
        "cli/predict",
        "cli/tune",
    },
    {"cli/main"},
    {"cli/page"},
    {"__main__"},
]
SIDEWAYS = {
    ("pcn/schema", "pcn/names"),
    ("pcn/meta", "pcn/names"),
    *[("pcn/gate", f"pcn/{room}") for room in ("names", "schema")],
    ("pcn/header", "pcn/codec"),
    ("pcn/header", "pcn/names"),
    ("pcn/header", "pcn/words"),
    ("pcn/header", "pcn/names"),
    ("pcn/header", "pcn/words"),
    ("pcn/header", "pcn/gate"),
    ("pcn/header", "pcn/templates"),
    *[("pcn/streams", f"pcn/{room}") for room in ("codec", "context", "layout")],
    *[("pcn/sections", f"pcn/{room}") for room in ("codec", "layout", "streams")],
    *[("pcn/file", f"pcn/{room}") for room in ("codec", "gate", "header", "layout", "meta", "sections")],
    *[("pcn/runner", f"pcn/{room}") for room in ("file", "gate")],
    ("bayes/kl", "bayes/distributions"),
    ("bayes/priors", "bayes/distributions"),
    ("bayes/priors", "bayes/kl"),
    *[("bayes/assignment", f"bayes/{room}") for room in ("own_priors", "priors")],
    *[
        (f"bayes/{room}", "bayes/assignment")
        for room in ("dead_units", "extract", "guides", "layers", "marginals", "train_state", "step", "tensors")
    ],
    ("bayes/step", "bayes/guides"),
    ("bayes/own_priors", "bayes/priors"),
    ("bayes/layers", "bayes/priors"),
    ("bayes/estimators", "bayes/layers"),
    ("bayes/estimators", "bayes/priors"),
    ("bayes/guides", "bayes/layers"),
    ("bayes/guides", "bayes/priors"),
    ("bayes/extract", "bayes/guides"),
    ("bayes/extract", "bayes/layers"),
    ("bayes/extract", "bayes/priors"),
    ("bayes/extract", "bayes/model"),
    ("bayes/predict", "bayes/model"),
    ("bayes/model", "bayes/distributions"),
    ("bayes/model", "bayes/guides"),
    ("bayes/marginals", "bayes/guides"),
    ("bayes/marginals", "bayes/layers"),
    ("bayes/marginals", "bayes/quadrature"),
    ("bayes/quadrature", "bayes/distributions"),
    ("bayes/diagnostics", "bayes/marginals"),
    ("bayes/elbo", "bayes/estimators"),
    ("bayes/elbo", "bayes/guides"),
    ("bayes/elbo", "bayes/layers"),
    ("bayes/elbo", "bayes/model"),
    ("bayes/step", "bayes/elbo"),
    ("bayes/step", "bayes/model"),
    ("bayes/compiler", "bayes/elementary"),
    ("bayes/noise", "bayes/draws"),
    *[
        (f"bayes/{room}", "bayes/shards")
        for room in ("draws", "elbo", "fit", "guides", "layers", "sharded_step", "step", "tensors", "train_state")
    ],
    ("bayes/estimators", "bayes/draws"),
    *[
        ("bayes/sharded_step", f"bayes/{room}")
        for room in ("capture", "compiler", "draws", "elbo", "guides", "noise", "step")
    ],
    ("bayes/fit", "bayes/sharded_step"),
    ("bayes/noise", "bayes/compiler"),
    ("bayes/noise", "bayes/elementary"),
    ("bayes/capture", "bayes/compiler"),
    ("bayes/capture", "bayes/elbo"),
    ("bayes/capture", "bayes/noise"),
    ("bayes/capture", "bayes/step"),
    *[(f"bayes/{room}", "bayes/natural") for room in ("capture", "step", "train_state")],
    *[
        ("bayes/train_state", f"bayes/{room}")
        for room in ("elbo", "guides", "layers", "model", "priors", "step", "tensors")
    ],
    *[("bayes/tensors", f"bayes/{room}") for room in ("layers", "priors")],
    *[("bayes/dead_units", f"bayes/{room}") for room in ("extract", "layers", "model", "priors", "train_state")],
    ("bayes/program", "bayes/guides"),
    ("bayes/guides", "bayes/own_guides"),
    *[("bayes/own_guides", f"bayes/{room}") for room in ("matched", "priors")],
    *[("bayes/program", f"bayes/{room}") for room in ("layers", "model", "own_guides", "priors", "train_state")],
    *[("bayes/inferred", f"bayes/{room}") for room in ("assignment", "extract", "layers", "matched", "model")],
    *[("bayes/inferred", f"bayes/{room}") for room in ("priors", "program")],
    *[("bayes/fit", f"bayes/{room}") for room in ("capture", "dead_units", "elbo", "extract", "layers", "model")],
    *[("bayes/fit", f"bayes/{room}") for room in ("own_guides", "train_state", "step")],
    ("deploy/onnx_model", "deploy/crop"),
    ("deploy/onnx_files", "deploy/engines"),
    ("deploy/onnx_files", "deploy/onnx_model"),
    ("deploy/onnx_files", "deploy/onnx_torch"),
    ("deploy/onnx_torch", "deploy/onnx_model"),
    *[("deploy/arrays", f"deploy/{room}") for room in ("program", "standalone")],
    ("deploy/program", "deploy/standalone"),
    ("deploy/engines", "deploy/arrays"),
    ("deploy/engines", "deploy/torch_files"),
    ("deploy/memory", "deploy/engines"),
    *[("deploy/c/layout", f"deploy/c/{room}") for room in ("plan", "whole")],
    ("deploy/c/layers", "deploy/c/whole"),
    ("deploy/c/positions", "deploy/c/whole"),
    *[("deploy/c/operations", f"deploy/c/{room}") for room in ("functions", "layers", "plan")],
    *[("deploy/c/source", f"deploy/c/{room}") for room in ("functions", "layers", "layout", "operations", "plan")],
    *[("deploy/c/source", f"deploy/c/{room}") for room in ("positions", "templates", "whole")],
    *[("deploy/integer/parts", f"deploy/c/{room}") for room in ("operations", "plan")],
    *[("deploy/integer/steps", f"deploy/{room}") for room in ("c/plan", "integer/fixed_point", "integer/grids")],
    ("deploy/integer/steps", "deploy/integer/parts"),
    ("deploy/integer/fixed_point", "deploy/integer/grids"),
    *[("deploy/integer/arena", f"deploy/integer/{room}") for room in ("parts", "steps")],
    *[("deploy/integer/tables", f"deploy/integer/{room}") for room in ("fixed_point", "steps")],
    *[("deploy/integer/tiles", f"deploy/integer/{room}") for room in ("parts", "steps", "tables")],
    *[("deploy/integer/layers", f"deploy/integer/{room}") for room in ("steps", "tables", "tiles")],
    *[("deploy/integer/sequences", f"deploy/integer/{room}") for room in ("fixed_point", "steps", "tables")],
    *[("deploy/integer/loops", f"deploy/integer/{room}") for room in ("grids", "sequences", "steps")],
    ("deploy/integer/loops", "deploy/c/operations"),
    *[
        ("deploy/integer/source", f"deploy/integer/{room}")
        for room in ("arena", "arithmetic", "layers", "loops", "sequences", "steps", "tables")
    ],
    ("deploy/integer/source", "deploy/c/source"),
    *[(f"deploy/integer/{hall}", "deploy/c/library") for hall in ("library", "footprint")],
    *[
        ("deploy/integer/chosen", f"deploy/integer/{room}")
        for room in ("footprint", "grids", "library", "parts", "source", "steps")
    ],
    *[("deploy/formats", f"deploy/integer/{room}") for room in ("chosen", "library")],
    ("deploy/engines", "deploy/c/library"),
    *[("deploy/wasm/build", f"deploy/{room}") for room in ("c/source", "card", "wasm/packed")],
    *[(f"deploy/{hall}", "deploy/wasm/node") for hall in ("engines", "memory", "formats", "entries", "bench")],
    *[(f"deploy/{hall}", "deploy/wasm/build") for hall in ("formats", "entries")],
    *[(f"deploy/{hall}", f"deploy/{room}") for hall in ("formats", "entries") for room in ("c/library", "c/source")],
    *[("deploy/entries", f"deploy/{room}") for room in ("arrays", "card", "engines", "onnx_files", "torch_files")],
    *[("deploy/entries", f"deploy/{room}") for room in ("integer/chosen", "phone/executorch", "phone/litert")],
    *[("deploy/engines", f"deploy/{room}") for room in ("integer/library", "phone/executorch", "phone/litert")],
    *[("deploy/formats", f"deploy/{room}") for room in ("arrays", "onnx_files", "torch_files")],
    *[(f"deploy/phone/{hall}", "deploy/phone/traced") for hall in ("executorch", "litert")],
    *[("deploy/formats", f"deploy/phone/{room}") for room in ("executorch", "litert")],
    *[("deploy/onnx_four_bits", f"deploy/{room}") for room in ("onnx_files", "onnx_model", "onnx_torch")],
    *[(f"deploy/{hall}", "deploy/onnx_four_bits") for hall in ("formats", "entries")],
    *[("deploy/export", f"deploy/{room}") for room in ("card", "ensemble", "formats", "said")],
    ("deploy/formats", "deploy/said"),
    *[("deploy/bench", f"deploy/{room}") for room in ("engines", "entries", "export", "formats", "measured", "memory")],
}


def floor(module: str) -> int:
    for index, rooms in enumerate(FLOORS):
        if module in rooms or f"{module.partition('/')[0]}/*" in rooms:
            return index
    raise AssertionError(f"{module} has no floor: add it to FLOORS")


def imports(module: str) -> set[str]:
    """Dotted names that a module imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    """Those among dotted names that are modules of this package, as paths."""
    paths = {
        name.removeprefix("pyro_compress.").replace(".", "/") for name in names if name.startswith("pyro_compress.")
    }
    return paths & set(MODULES)


def test_every_folder_stands_in_the_documentation() -> None:
    text = (ROOT.parent / "docs/architecture.md").read_text()
    table = text[text.index("## Folders") : text.index("## From a network")]
    named = set(re.findall(r"`(\w+)`(?=[^|]*\|[^|]*\|\n)", table))
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} <= named
    assert len(re.findall(r"\w+[^\s|]*", text)) < 2000  # what the folders say themselves does not stand here


def test_imports_only_from_floors_below() -> None:
    wrong = [
        f"{module} imports {other}, which does not stand below it"
        for module in MODULES
        if not module.endswith("__init__")
        for other in own(imports(module))
        if floor(other) >= floor(module) and (module, other) not in SIDEWAYS
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("pyro", ("bayes/",)),
        ("submitit", ("runs/slurm",)),
        ("optuna", ("tuning/storage", "tuning/workers", "tuning/outcome")),
    ],
)
def test_a_package_stays_in_its_rooms(package: str, rooms: tuple[str, ...]) -> None:
    users = [m for m in MODULES if any(name.partition(".")[0] == package for name in imports(m))]
    assert users
    assert [module for module in users if not module.startswith(rooms)] == []


LIGHT = (
    ("pyro_compress", {"torch", "pyro", "numpy", "click"}),
    ("pyro_compress.cli.main", {"torch", "pyro", "numpy", "sklearn", "rich", "onnx", "onnxruntime", "optuna"}),
    ("pyro_compress.pcn.runner", {"torch", "pyro", "sklearn"}),
    ("pyro_compress.deploy.c.library", {"torch", "onnxruntime"}),
    ("pyro_compress.deploy.integer.library", {"torch", "onnxruntime"}),
    ("pyro_compress.deploy.wasm.node", {"torch", "onnxruntime"}),
    ("pyro_compress.deploy.memory", {"torch", "onnxruntime"}),
    ("pyro_compress.compression.pipeline", {"pyro", "sklearn", "torchvision"}),
    ("pyro_compress.deploy.export", {"pyro", "sklearn", "onnx", "onnxruntime", "scipy"}),
    ("pyro_compress.tuning.plan", {"optuna", "pyro"}),
)
"""Modules, and what importing them must not load; one process imports them in this order."""


def test_imports_stay_light() -> None:
    code = (
        "import importlib, json, sys\n"
        f"for name in {[name for name, _ in LIGHT]}:\n"
        "    importlib.import_module(name)\n"
        "    print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [set(json.loads(line)) for line in done.stdout.splitlines()]
    assert {name: found & absent for (name, absent), found in zip(LIGHT, loaded, strict=True) if found & absent} == {}


def test_public_names_exist() -> None:
    for name in pyro_compress.__all__:
        assert getattr(pyro_compress, name) is not None
    assert set(pyro_compress.__all__) <= set(dir(pyro_compress))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pyro_compress.nothing


def test_only_metrics_reads_the_test_split() -> None:
    readers = {
        module
        for module in MODULES
        for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "test" and isinstance(node.ctx, ast.Load)
    }
    assert readers <= {"types"}  # Splits.sizes counts it; metrics reads it by name


def test_no_pickle() -> None:
    for module in MODULES:
        names = imports(module)
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & names
        source = (ROOT / f"{module}.py").read_text()
        assert source.count("torch.load(") == source.count('torch.load(path, map_location="cpu", weights_only=True)')
