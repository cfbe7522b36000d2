"""Checkpoints as people have them: one network's weights in every common form, and what is refused in one line."""

import argparse
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from pyro_compress.networks.checkpoints import entries_of
from pyro_compress.networks.weights import put_weights, read_weights

State = dict[str, Tensor]


class Net(nn.Module):
    """Convolution, batch norm, linear layers; one of them in a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.conv(x)).relu())
        return found


def trained() -> Net:
    torch.manual_seed(1)
    net = Net()
    for _ in range(3):  # statistics of batch norm, and steps of spectral norm
        net(torch.randn(8, 1, 4, 4))
    return net.eval()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def pruned(net: Net) -> Net:
    prune.l1_unstructured(net.head[1], "weight", amount=0.5)
    prune.l1_unstructured(net.conv, "bias", amount=0.5)
    return net


def weight_normed(net: Net) -> Net:
    for layer, dim in ((net.conv, 0), (net.head[1], None), (net.head[3], 1)):
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(layer, dim=dim)
    return net


def weight_normed_anew(net: Net) -> Net:
    parametrizations.weight_norm(net.conv)
    parametrizations.weight_norm(net.head[1])
    return net


def spectral_normed(net: Net) -> Net:
    nn.utils.spectral_norm(net.conv)
    nn.utils.spectral_norm(net.head[1])
    return settled(net)


def spectral_normed_anew(net: Net) -> Net:
    parametrizations.spectral_norm(net.conv)
    parametrizations.spectral_norm(net.head[1])
    return settled(net)


def settled(net: Net) -> Net:
    net.train()(torch.randn(8, 1, 4, 4))
    net.eval()(torch.randn(8, 1, 4, 4))  # the old hook computes the weight in every pass
    return net


def profiled(state: State) -> State:
    counters = {
        f"{layer}.{name}": torch.zeros(1) for layer in ("conv", "head.1") for name in ("total_ops", "total_params")
    }
    return state | counters | {"total_ops": torch.zeros(1)}


FORMS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "bare": ("w.pt", lambda state: state),
    "an OrderedDict": ("w.pth", OrderedDict),
    "pth.tar": ("w.pth.tar", lambda state: {"epoch": 3, "arch": "net", "state_dict": state, "best_acc1": 0.9}),
    "bin": ("pytorch_model.bin", lambda state: state),
    "ckpt of Lightning": (
        "last.ckpt",
        lambda state: {
            "epoch": 1, "pytorch-lightning_version": "2.4", "hyper_parameters": {"lr": 0.1}, "callbacks": {},
            "state_dict": prefixed(state, "model.") | {"loss.weight": torch.ones(3)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4)}}}],
        },
    ),
    "no suffix": ("weights", lambda state: state),
    "a list": ("w.pt", lambda state: [state]),
    "a tuple": ("w.pt", lambda state: (3, {"model": prefixed(state, "module.")})),
    "checkpointed layers": (
        "w.pt",
        lambda state: {n.replace("conv.", "conv._checkpoint_wrapped_module."): t for n, t in state.items()},
    ),
    "state_dict": ("w.pt", lambda state: {"state_dict": state}),
    "model_state_dict": (
        "w.pt",
        lambda state: {
            "model_state_dict": state, "loss": 0.1,
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(4, 1, 3, 3), "step": torch.tensor(3.0)}}},
        },
    ),
    "model": ("w.pt", lambda state: {"model": state, "args": {"lr": 0.1}}),
    "net": ("w.pt", lambda state: {"net": state, "acc": 93.1, "epoch": 7}),
    "ema alone": ("w.pt", lambda state: {"ema": state}),
    "params_ema": ("w.pt", lambda state: {"params_ema": state}),
    "two levels": ("w.pt", lambda state: {"model": {"state_dict": state}, "step": 1}),
    "beside numbers": ("w.pt", lambda state: {**state, "epoch": 3, "optimizer": {"state": {}}}),
    "DataParallel": ("w.pt", lambda state: prefixed(state, "module.")),
    "DataParallel, nested": ("w.pt", lambda state: {"state_dict": prefixed(state, "module.")}),
    "compiled": ("w.pt", lambda state: prefixed(state, "_orig_mod.")),
    "compiled DataParallel": ("w.pt", lambda state: prefixed(state, "_orig_mod.module.")),
    "DataParallel of compiled": ("w.pt", lambda state: prefixed(state, "module._orig_mod.")),
    "Lightning, compiled": ("w.ckpt", lambda state: {"state_dict": prefixed(state, "model._orig_mod.")}),
    "a prefix of one's own": ("w.pt", lambda state: prefixed(state, "classifier.backbone.")),
    "DataParallel inside": (
        "w.pt", lambda state: {name.replace("head.", "head.module."): tensor for name, tensor in state.items()},
    ),
    "compiled inside of Lightning": (
        "w.ckpt",
        lambda state: {
            "state_dict": prefixed({n.replace("head.", "head._orig_mod."): t for n, t in state.items()}, "model.")
        },
    ),
    "safetensors": ("w.safetensors", lambda state: state),
    "safetensors, wrapped": ("w.safetensors", lambda state: prefixed(state, "model.module.")),
    "safetensors, compiled": ("w.safetensors", lambda state: prefixed(state, "_orig_mod.")),
    "safetensors under another suffix": ("w.bin", lambda state: state),
    "an averaged model": ("w.pt", lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(3)}),
    "without counters of batch norm": (
        "w.pt", lambda state: {name: t for name, t in state.items() if "num_batches" not in name},
    ),
    "a profiler's counters": ("w.pt", profiled),
    "a profiler's, wrapped": ("w.pt", lambda state: prefixed(profiled(state), "module.")),
    "double": ("w.pt", lambda state: {name: t.double() if t.is_floating_point() else t for name, t in state.items()}),
    "old torch": ("w.pth", lambda state: state),
}  # fmt: skip
"""Form -> file name, and what is saved of a state dict."""

MADE_OF_PARTS: dict[str, Callable[[Net], Net]] = {
    "pruned": pruned,
    "weight norm": weight_normed,
    "weight norm, parametrized": weight_normed_anew,
    "spectral norm": spectral_normed,
    "spectral norm, parametrized": spectral_normed_anew,
}


def saved(state: Any, form: str, path: Path) -> Path:
    if form.startswith("safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form != "old torch")
    return path


def loaded(path: Path) -> Net:
    net = Net()
    put_weights(net, read_weights(str(path), net.state_dict()), str(path), "net")
    return net.eval()


@pytest.mark.parametrize("form", FORMS)
def test_every_common_form_holds_the_same_weights(form: str, tmp_path: Path) -> None:
    name, wrap = FORMS[form]
    net = trained()
    found = loaded(saved(wrap(net.state_dict()), form, tmp_path / name)).state_dict()
    for key, tensor in net.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(found[key], tensor), key


@pytest.mark.parametrize("wrapped", ["", "module."])
@pytest.mark.parametrize("way", MADE_OF_PARTS)
def test_tensors_in_parts_are_put_together(way: str, wrapped: str, tmp_path: Path) -> None:
    net = MADE_OF_PARTS[way](trained())
    state = {"epoch": 1, "state_dict": prefixed(net.state_dict(), wrapped)}
    x = torch.randn(5, 1, 4, 4).double()
    assert torch.allclose(loaded(saved(state, way, tmp_path / "w.pt")).double()(x), net.double()(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in trained().state_dict().items()}
    found = loaded(saved(state, "bare", tmp_path / "w.pt")).state_dict()
    assert all(torch.equal(found[name], state[name].float()) for name in found if state[name].is_floating_point())


def test_names_that_look_like_wrappers_stay_where_they_are_the_networks(tmp_path: Path) -> None:
    """A network whose own layers are called model and module."""
    net = nn.ModuleDict({"model": nn.Linear(2, 3), "module": nn.Linear(2, 3)})
    for name, prefix in (("plain", ""), ("wrapped", "module.")):
        torch.save(prefixed(net.state_dict(), prefix), tmp_path / name)
        found = read_weights(str(tmp_path / name), net.state_dict())
        assert found.keys() == net.state_dict().keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in net.state_dict().items())


def test_weights_of_the_inner_module_fit_the_wrapped_one(tmp_path: Path) -> None:
    net = nn.Sequential(OrderedDict(model=nn.Linear(2, 3)))
    torch.save(net.model.state_dict(), tmp_path / "w.pt")
    assert read_weights(str(tmp_path / "w.pt"), net.state_dict()).keys() == net.state_dict().keys()


def test_of_two_state_dicts_the_trained_one_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = trained()
    average = {name: tensor * 2 for name, tensor in net.state_dict().items()}
    torch.save({"ema": {"module": average}, "model": net.state_dict()}, tmp_path / "w.pt")
    assert torch.equal(loaded(tmp_path / "w.pt").state_dict()["conv.weight"], net.conv.weight)
    assert "weights under 'model', 'ema.module' fit the network, the first are taken" in caplog.text


class Anything:
    """What a whole pickled object would be."""


def broken(value: float) -> State:
    state = trained().state_dict()
    state["head.1.weight"][2, 3] = value
    return state


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a whole module": (trained, r"holds more than tensors \(.*Net\), and nothing is unpickled here: .*torch.save"),
    "a namespace": (
        lambda: {"state_dict": trained().state_dict(), "hyper_parameters": argparse.Namespace(lr=0.1)},
        r"holds more than tensors \(argparse.Namespace\), and nothing is unpickled here",
    ),
    "an object": (lambda: {"w": Anything()}, r"holds more than tensors \(.*Anything\)"),
    "a numpy number": (lambda: {"acc": np.float64(0.9), **trained().state_dict()}, "holds more than tensors"),
    "no tensors": (lambda: {"epoch": 3}, "holds no state dict: tensors by name"),
    "tensors without names": (lambda: [*trained().state_dict().values()], "holds no state dict: tensors by name"),
    "NaN": (
        lambda: broken(float("nan")),
        r"head.1.weight holds 1 of 80 values that are not finite, the first at \[2, 3\]",
    ),
    "infinite": (lambda: broken(float("inf")), "head.1.weight holds 1 of 80 values that are not finite"),
    "too large for float32": (
        lambda: {n: t.double() * 1e300 if "conv" in n else t for n, t in trained().state_dict().items()},
        "conv.weight holds 36 of 36 values that are not finite",
    ),
    "integers": (
        lambda: {n: (t * 100).to(torch.int8) for n, t in trained().state_dict().items()},
        "conv.weight holds torch.int8, no real numbers",
    ),
    "another network": (
        lambda: {f"layer{i}.{part}": torch.zeros(2) for i in range(3) for part in ("weight", "bias")},
        "missing conv.weight, conv.bias, norm.weight, and 7 more; unknown layer0.weight, layer0.bias, layer1.weight, "
        "and 3 more; missing is what the network wants, unknown what the file holds instead",
    ),
    "another width": (
        lambda: trained().state_dict() | {"head.1.weight": torch.zeros(6, 16)},
        r"head.1.weight has shape \(6, 16\), the network's \(5, 16\)",
    ),
    "a layer more": (lambda: trained().state_dict() | {"own": torch.zeros(2)}, "unknown own"),
    "an orthogonal layer": (
        lambda: parametrizations.orthogonal(nn.Linear(3, 3)).state_dict(),
        r"parametrizations.weight.* is not known here; .*remove_parametrizations",
    ),
    "no values": (
        lambda: trained().state_dict() | {"head.1.bias": torch.zeros(5, device="meta")},
        "w.pt: head.1.bias is a meta tensor, which holds no plain values; save the weights as float32",
    ),
    "pairs of other shapes": (
        lambda: {"conv.weight_g": torch.zeros(4), "conv.weight_v": torch.zeros(4, 1, 3, 3)},
        r"conv.weight_g and conv.weight_v make no weight: lengths of shape \(4,\)",
    ),
}


class Shell:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def test_a_plain_pickle_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch warns of its protocol and advises to unpickle it; neither reaches the user."""
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_bytes(pickle.dumps(Shell(), 4))
    with pytest.raises(
        ValueError, match=r"^w.pt holds more than tensors, or is damaged; nothing is unpickled"
    ) as error:
        entries_of(Path("w.pt"))
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_says_so_in_one_line(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    torch.save(make(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message) as caught:
        loaded(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_other_archives_are_named(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(trained().eval(), (torch.zeros(1, 1, 4, 4),)), tmp_path / "w.pt2")
    with pytest.raises(ValueError, match=r"w.pt2 is an exported program, no state dict: .*torch.export.load"):
        loaded(tmp_path / "w.pt2")
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in trained().state_dict().items()})
    with pytest.raises(ValueError, match=r"w.npz is an archive of numpy arrays, no state dict: .*np.load"):
        loaded(tmp_path / "w.npz")


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    torch.jit.trace(trained(), torch.zeros(1, 1, 4, 4)).save(str(tmp_path / "w.pt"))
    with pytest.raises(ValueError, match=r"is a TorchScript program, no state dict: .*torch.jit.load"):
        loaded(tmp_path / "w.pt")


def test_weights_that_layers_share_may_be_there_once() -> None:
    """As safetensors' save_model writes them; what is not shared is still missing."""
    tied, weight = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"missing 1\.weight"):
        put_weights(tied, {"0.weight": weight}, "f", "n")
    tied[1].weight = tied[0].weight
    put_weights(tied, {"0.weight": weight}, "f", "n")
    assert torch.equal(tied[1].weight, weight)
