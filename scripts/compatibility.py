"""Networks of others, how far they are taken, for docs/results/compatibility.md: `python scripts/compatibility.py`.

Goes through torchvision's classifiers and segmentation networks, one network of each family of timm, and the usual
architectures of transformers, untrained, at small sizes where their code allows it. Per network: is it captured (and
then equal to its module), what share of its parameters carries a prior, are dead units removed exactly, does it come
back from a file, and do numpy, ONNX and C compute the same. What is not is named with its reason. timm and transformers
are used where they are installed; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_compress.compression.held import kind_of
from pyro_compress.compression.shrink import shrink
from pyro_compress.deploy import onnx_files
from pyro_compress.deploy.c.plan import planned
from pyro_compress.deploy.card import card
from pyro_compress.graph.capture import capture
from pyro_compress.graph.checked import examples
from pyro_compress.graph.ir import multiplied
from pyro_compress.graph.network import Network, tensors_of
from pyro_compress.graph.operations.kept import whole_tensors
from pyro_compress.graph.operations.row import Channels
from pyro_compress.networks.attention import split_attention
from pyro_compress.networks.spelling import plainly_named
from pyro_compress.pcn import file, gate, runner
from pyro_compress.scores import Scores
from pyro_compress.types import Compressed, Graph, Quantized

ROOT = Path(__file__).parents[1]
DEAD = 0.3
"""Share of the rows of every layer that is set to zero before removal."""
CLOSE = 1e-3
"""Largest difference, relative to the largest output, that is rounding: deep untrained networks amplify it."""
MOST_PARAMETERS = 40_000_000
"""Larger networks are captured, compared with their module, and not taken further."""
MINUTES = 3.0
"""Time of a processor that one network may take."""
COLUMNS = ("captured", "prior", "removed", "file", "numpy", "onnx", "c")


@dataclass
class Found:
    """What one network came to.

    Attributes:
        name: of the network.
        parameters: how many it has.
        checks: column of the table -> `yes`, a share, or the reason why not.
        seconds: all of it together.
        kept: operations that have no row, and torch alone runs.
    """

    name: str
    parameters: int = 0
    checks: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    kept: list[str] = field(default_factory=list)


Make = Callable[[], tuple[Any, ...]]
"""Makes a network; tells its input's shape, and its type where that is not float32."""


@contextlib.contextmanager
def limited(minutes: float) -> Iterator[None]:
    """Stops what takes longer."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {minutes:g} minutes of a processor")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def torchvision_networks() -> dict[str, Make]:
    """Classifiers and segmentation networks of torchvision, with an input shape each."""
    from torchvision import models

    def maker(name: str) -> Make:
        size = 299 if name.startswith("inception") else 224 if name.startswith(("vit", "maxvit", "swin")) else 64
        size = 96 if name.startswith(("alexnet", "squeezenet", "densenet", "googlenet")) else size

        def make() -> tuple[Any, ...]:
            more: dict[str, Any] = {"weights": None}
            more |= {"weights_backbone": None} if name in models.list_models(module=models.segmentation) else {}
            more |= {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
            net = models.get_model(name, **more)
            return Picked(net, "out") if name in models.list_models(module=models.segmentation) else net, (
                3,
                size,
                size,
            )

        return make

    names = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    return {f"torchvision {name}": maker(name) for name in names}


def timm_networks() -> dict[str, Make]:
    """The smallest network of every family of timm."""
    try:
        import timm
    except ImportError:
        print("timm is not installed: its networks are left out", file=sys.stderr)
        return {}

    def maker(name: str) -> Make:
        def make() -> tuple[Any, ...]:
            for smaller in ({"depth": 2}, {"depths": (1, 1, 1, 1)}, {}):
                with contextlib.suppress(Exception):  # whatever a network of theirs says of what it does not take
                    net = timm.create_model(name, pretrained=False, num_classes=10, **smaller)
                    return net, tuple(net.default_cfg["input_size"])
            raise ValueError(f"timm does not build {name}")

        return make

    found = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            found[f"timm {module}"] = maker(min(names, key=_size_of_name))
    return found


def _size_of_name(name: str) -> tuple[int, int, str]:
    """Small ones first, as far as names say it."""
    small = (
        "atto",
        "femto",
        "pico",
        "nano",
        "_xxt",
        "_xt",
        "tiny",
        "_t0",
        "_s0",
        "_050",
        "_035",
        "18",
        "_b0",
        "_xxs",
        "_xs",
    )
    return (0 if any(mark in name for mark in small) else 1, len(name), name)


class Picked(nn.Module):
    """A network that returns several things, as one that returns the tensor of a name (`out`, `logits`, ...)."""

    def __init__(self, net: nn.Module, name: str):
        super().__init__()
        self.net, self.name = net, name

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)[self.name]
        return found


def transformers_networks() -> dict[str, Make]:
    """Small shapes of the usual architectures of transformers, untrained."""
    try:
        import transformers as hf
    except ImportError:
        print("transformers is not installed: its networks are left out", file=sys.stderr)
        return {}
    logging.getLogger("transformers").setLevel(logging.ERROR)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    words = {"vocab_size": 100} | small
    dim = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    gpt = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}
    sound = small | {
        "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 20,
    }  # fmt: skip
    built: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
        "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**words)), (16,), "logits"),
        "distilbert": (lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**dim)), (16,), "logits"),
        "roberta": (lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**words)), (16,), "logits"),
        "albert": (lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**words)), (16,), "logits"),
        "electra": (lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**words)), (16,), "logits"),
        "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt)), (16,), "logits"),
        "gpt-neo": (lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**words)), (16,), "logits"),
        "opt": (lambda: hf.OPTForCausalLM(hf.OPTConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
            word_embed_proj_dim=32)), (16,), "logits"),
        "t5-encoder": (lambda: hf.T5EncoderModel(hf.T5Config(
            vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)), (16,), "last_hidden_state"),
        "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**words, num_key_value_heads=2)), (16,), "logits"),
        "mistral": (lambda: hf.MistralForCausalLM(hf.MistralConfig(**words, num_key_value_heads=2)), (16,), "logits"),
        "qwen2": (lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**words, num_key_value_heads=2)), (16,), "logits"),
        "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**small, image_size=32, patch_size=8)),
                (3, 32, 32), "logits"),
        "wav2vec2": (lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**sound)), (400,), "logits"),
    }  # fmt: skip

    def maker(name: str) -> Make:
        build, shape, key = built[name]

        def make() -> tuple[nn.Module, tuple[int, ...], str]:
            net = build()
            for way in ("use_cache", "output_attentions"):
                if hasattr(net.config, way):
                    setattr(net.config, way, False)
            kind = "float32" if name in ("vit", "wav2vec2") else "int64"
            return Picked(net, key), shape, kind

        return make

    return {f"transformers {name}": maker(name) for name in built}


def tried(name: str, make: Make, largest: int = MOST_PARAMETERS) -> Found:
    """Send one network through everything; what is not captured ends it, any other column goes on to the next."""
    found, started = Found(name), time.monotonic()
    torch.manual_seed(0)
    try:
        with limited(MINUTES):
            net, shape, *kind = make()
            net = plainly_named(split_attention(net)).eval()
            found.parameters = sum(parameter.numel() for parameter in net.parameters())
            _all(found, net, shape, kind[0] if kind else "float32", largest)
    except Exception as error:  # whatever it is, it is what the table says
        column = next((column for column in COLUMNS if column not in found.checks), COLUMNS[-1])
        found.checks[column] = _reason(error)
    found.seconds = round(time.monotonic() - started, 1)
    return found


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _all(found: Found, net: nn.Module, shape: tuple[int, ...], kind: str, largest: int) -> None:
    graph = capture(net, shape, trained=False, kind=kind)
    kept = sorted({node.attributes["call"].partition(".")[0] for node in graph.nodes if node.op == "aten"})
    found.checks["captured"] = "yes"
    found.kept = kept
    named = {name for node in graph.nodes for name in node.parameters.values()}
    tensors = {name: tensor.detach().clone().float() for name, tensor in tensors_of(net).items() if name in named}
    parameters = dict(net.named_parameters(remove_duplicate=False))
    priors = [name for name in multiplied(graph) if name in parameters and tensors[name].dim() > 1]
    found.checks["prior"] = f"{sum(tensors[name].numel() for name in priors) / found.parameters:.1%}"
    x = examples(net, graph, 2)
    if found.parameters > largest:
        found.checks["removed"] = "not tried, it is large"
        return
    small = _removed(found, graph, tensors, x)
    whole = whole_tensors(small[0])
    packed = {n: Quantized(t.int().numpy(), 1.0) if n in whole else t.float().numpy() for n, t in small[1].items()}
    network = Compressed(small[0], packed, {})
    wanted = Network(*small).eval()(x).detach().numpy()

    def column(name: str, check: Callable[[], str]) -> None:
        try:
            found.checks[name] = check()
        except TimeoutError:
            raise
        except Exception as error:
            found.checks[name] = _reason(error)

    again = file.loads(file.dumps(network)[0], gate.UNLIMITED)
    found.checks["file"] = "yes" if again.graph == network.graph else "the graph differs"
    told = " (torch runs " + ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "") + ")" if kept else ""
    column("numpy", lambda: _agrees(runner.run(again, x.numpy()), wanted) + told)
    column("onnx", lambda: _by_onnx(again, x, wanted))
    column("c", lambda: "yes" if planned(again) else "")


def _removed(found: Found, graph: Graph, tensors: dict[str, Tensor], x: Tensor) -> Any:
    """Dead units everywhere but in the last layer; the smaller network against the masked one, in double precision."""
    layers = [node for node in graph.nodes if kind_of(node) in (Channels.MADE, Channels.MADE_ACROSS)]
    for node in layers:
        if (name := node.parameters["weight"]) != layers[-1].parameters["weight"]:
            made = tensors[name] if kind_of(node) is Channels.MADE else tensors[name].transpose(0, 1)
            made[torch.rand(len(made)) < DEAD] = 0
    double = {name: tensor.double() for name, tensor in tensors.items()}
    small = shrink(graph, double)
    with torch.no_grad():
        x = x.double() if x.is_floating_point() else x
        wanted, got = (Network(_in_double(one), held).eval()(x) for one, held in ((graph, double), small))
    gap = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    left = sum(t.numel() for t in small[1].values()) / sum(t.numel() for t in tensors.values())
    found.checks["removed"] = f"exact, {left:.0%} of the values left" if gap < 1e-9 else f"off by {gap:.1e}"
    return small[0], {name: t.float() for name, t in small[1].items()}


def _in_double(graph: Graph) -> Graph:
    """A network whose forward makes doubles where it made single numbers of nothing."""
    made = (json.dumps(node.attributes).replace('"kind": "float32"', '"kind": "float64"') for node in graph.nodes)
    nodes = tuple(replace(node, attributes=json.loads(one)) for node, one in zip(graph.nodes, made, strict=True))
    return replace(graph, nodes=nodes)


def _agrees(got: np.ndarray, wanted: np.ndarray) -> str:
    gap = float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30))
    return "yes" if gap < CLOSE else f"off by {gap:.1e}"


def _by_onnx(network: Compressed, x: Tensor, wanted: np.ndarray) -> str:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"compatibility-{os.getpid()}.onnx"
    try:
        onnx_files.write_onnx(network, card(network, Scores(0.0, 0.0, 0.0, 0.0), 1), path)
        return _agrees(onnx_files.load_onnx(path)(x.numpy()), wanted)
    finally:
        path.unlink(missing_ok=True)


def page(rows: list[Found]) -> str:
    """The document."""
    head = "| network | parameters | captured, equal | with a prior | dead units removed | file | numpy | ONNX | C |"
    lines = ["# Networks of others", "", __doc__.split("\n\n")[1].replace("\n", " "), ""]
    for family in dict.fromkeys(row.name.split()[0] for row in rows):
        part = [row for row in rows if row.name.split()[0] == family]
        captured = sum(row.checks.get("captured") == "yes" for row in part)
        back = sum(row.checks.get("file") == "yes" and row.checks.get("numpy", "").startswith("yes") for row in part)
        rows_alone = sum(row.checks.get("captured") == "yes" and not row.kept for row in part)
        lines += [
            f"## {family}",
            "",
            f"{captured} of {len(part)} are captured and equal to their module, {back} come back from a file and "
            f"compute the same; {rows_alone} have nothing that torch alone runs.",
            "",
        ]
        lines += [head, "|" + " --- |" * 9]
        for row in part:
            cells = [row.checks.get(column, "") for column in COLUMNS]
            lines.append(f"| {row.name.split()[1]} | {row.parameters:,} | " + " | ".join(map(_cell, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Try them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--exactly", default="", help="the one of this name")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "results" / "compatibility.json", help="JSON rows")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs" / "results" / "compatibility.md", help="the document"
    )
    parser.add_argument("--largest", type=int, default=MOST_PARAMETERS, help="no more than capturing beyond this size")
    parser.add_argument("--missing", action="store_true", help="only those that have no row yet")
    parser.add_argument("--smoke", action="store_true", help="one small network of torchvision; nothing but its row")
    given = parser.parse_args()
    networks = torchvision_networks()
    if not given.smoke:
        networks |= transformers_networks() | timm_networks()
    only = "torchvision squeezenet1_1" if given.smoke else given.only
    known = json.loads(given.rows.read_text()) if given.rows.exists() and not given.smoke else []
    rows = {row["name"]: Found(**row) for row in known}
    chosen = [name for name in networks if only in name and given.exactly in ("", name)]
    if not chosen:
        parser.error(f"no network is called {given.exactly or only}; names are like {', '.join(list(networks)[:2])}")
    for name in chosen:
        if not (given.missing and name in rows):
            rows[name] = tried(name, networks[name], given.largest)
            print(f"{name}: {rows[name].seconds} s, {rows[name].checks}", flush=True)
            if not given.smoke:
                given.rows.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1) + "\n")
    if not given.smoke:
        given.page.write_text(page(list(rows.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
