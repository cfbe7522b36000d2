"""Layers whose weights are drawn from a prior; they know neither KL nor posterior.

`BayesLayer.forward` runs the prior and then issues one effectful operation, `affine`. What happens there is up to the
estimator in force (`pyro_compress.bayes.estimators`); the default multiplies the weight out.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from pyro.poutine.runtime import effectful
from torch import Tensor, nn

from pyro_compress.bayes.assignment import Assignment, everywhere
from pyro_compress.bayes.priors import Prior
from pyro_compress.bayes.shards import Rows, applied
from pyro_compress.graph.checked import examples, outputs_of, trial
from pyro_compress.graph.convolution import convolve
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.types import Graph, LayerShape, WeightDraw


@dataclass(frozen=True)
class Operation:
    """A linear map of `x` and a weight: `function(x, weight, bias)`, features of `x` on `channel_axis`."""

    function: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    channel_axis: int


def _linear(module: nn.Module) -> Operation:
    return Operation(F.linear, -1)


def _conv(module: nn.Module) -> Operation:
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    # the module's own forward: it knows padding modes; its weight and bias are passed in
    if module.padding_mode == "zeros":
        settings = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
        return Operation(functools.partial(convolve, **settings), 1)
    bare = copy.deepcopy(module)
    bare._parameters.clear()
    return Operation(bare._conv_forward, 1)


OPS: dict[type[nn.Module], Callable[[nn.Module], Operation]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
}


def operation_of(module: nn.Module) -> Operation | None:
    """The linear map that a module is by its class, or a class that its own comes from."""
    return next((make(module) for kind, make in OPS.items() if isinstance(module, kind)), None)


Bias = WeightDraw | Tensor | None
"""A drawn bias, a point estimate, or none."""


@effectful(type="affine")
def affine(op: Operation, x: Tensor, weight: WeightDraw, bias: WeightDraw | Tensor | None, *, site: str) -> Tensor:
    """Apply `op` with the drawn weight: the effect that estimators replace.

    Args:
        op: the linear map.
        x: its input.
        weight: draw of the weight.
        bias: draw of the bias, a point value, or None.
        site: name of the raw weight's site.
    """
    return op.function(x, multiplied(weight), bias_value(bias))


def multiplied(draw: WeightDraw) -> Tensor:
    """The weight that a draw stands for."""
    return draw.raw if draw.gate is None else draw.gate * draw.raw


def bias_value(bias: Bias) -> Tensor | None:
    """The bias that a draw stands for; point values pass."""
    return multiplied(bias) if isinstance(bias, WeightDraw) else bias


class Drawn(nn.Module):
    """What has a prior: a layer, or a tensor that is drawn before the network runs.

    Args:
        shape: name, shape and grouping of the weight.
        prior: its prior.

    Attributes:
        aliases: all names of a tensor that several modules share; empty: it has one.
        rows: this process's rows of the weight; None: it holds all of them.
    """

    def __init__(self, shape: LayerShape, prior: Prior):
        super().__init__()
        self.shape, self.prior = shape, prior
        self.aliases: tuple[str, ...] = ()
        self.rows: Rows | None = None

    @property
    def parts(self) -> list[tuple[LayerShape, Prior]]:
        """What is drawn, and its prior."""
        return [(self.shape, self.prior)]

    def draw(self, device: str) -> tuple[WeightDraw, Bias]:
        """Draw the weight from its prior; there may be a bias."""
        return self.drawn(device), None

    def drawn(self, device: str) -> WeightDraw:
        """Draw the weight, or this process's rows of it, from its prior."""
        if self.rows is None:
            return self.prior.draw(replace(self.shape, device=device))
        gate, raw = self.prior.draw(replace(self.shape, device=device, rows=self.rows.count))
        return WeightDraw(gate if gate is None or len(gate) == 1 else self.rows.of(gate), raw)


class BayesLayer(Drawn):
    """Stands in for one supported module: draws weight (and bias), then applies the module's operation.

    Args:
        module: the layer it stands in for; a point-valued bias is taken over as a parameter.
        shape: name, shape and grouping of its weight.
        prior: prior of the weight.
        bias_prior: prior of the bias; None keeps it a point estimate.
    """

    def __init__(self, module: nn.Module, shape: LayerShape, prior: Prior, bias_prior: Prior | None = None):
        super().__init__(shape, prior)
        self.bias_prior = bias_prior
        op = operation_of(module)
        assert op
        self.op = op
        bias = module._parameters["bias"]
        self.bias_shape: LayerShape | None = None
        if bias is not None and bias_prior is not None:
            self.bias_shape = LayerShape(shape.name.removesuffix("weight") + "bias", tuple(bias.shape))
            bias = None
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)

    @property
    def parts(self) -> list[tuple[LayerShape, Prior]]:
        """What is drawn: the weight and its prior, then the bias and its prior, if it has one."""
        bias = [(self.bias_shape, self.bias_prior)] if self.bias_shape and self.bias_prior else []
        return [*super().parts, *bias]

    def draw(self, device: str) -> tuple[WeightDraw, Bias]:
        """Draw weight and bias from their priors; a point-valued bias is returned as it is."""
        weight = self.drawn(device)
        if self.bias_shape is None or self.bias_prior is None:
            return weight, self.bias
        return weight, self.bias_prior.draw(replace(self.bias_shape, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with weights drawn from its prior (or replayed from a guide)."""
        weight, bias = self.draw(str(x.device))
        op = self.op if self.rows is None else replace(self.op, function=applied(self.op.function, self.rows))
        return affine(op, x, weight, bias, site=self.shape.site)


def bayesianize(
    net: nn.Module,
    prior: Prior | Assignment,
    grouping: str | None = None,
    bias_prior: Prior | Assignment | None = None,
    keep: tuple[str, ...] = (),
    among: Collection[str] | None = None,
    more: bool = False,
) -> nn.Module:
    """Copy a network and give its supported layers (`OPS`) a prior; the given network stays as it is.

    What is frozen (`requires_grad=False`) gets none, be it a weight or a bias.

    Args:
        net: any module tree; everything that is not a supported layer stays deterministic.
        prior: a row of `PRIORS`, or priors by pattern, of which each layer has one.
        grouping: `weight`, `input`, `output` or `filter`; the prior's own default if None. `filter` is what Louizos et
            al. 2017 (section 4) and their code do: the output channels of convolutions, the inputs of linear layers. A
            grouped convolution takes `output` for `input`: its second axis holds no channel of the input, but one of
            every group; of a depthwise convolution the two are the same.
        bias_prior: prior of the biases, per bias; None leaves them point estimates.
        keep: layers whose dotted path matches one of these patterns stay deterministic.
        among: names of the weights that may get a prior, of subclasses of the supported layers too (`plain_weights`);
            None: those of all layers that are exactly of a supported class.
        more: whether there are tensors that get a prior later; then the network needs no layer that does.

    Raises:
        ValueError: no supported layer, a grouping that the prior does not allow, a module used twice.

    Examples:
        >>> import pyro_compress as pc
        >>> from torch import nn
        >>> plain = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> bayes = pc.bayesianize(plain, pc.PRIORS["horseshoe"], grouping="input", keep=("2",))
        >>> bayes[0].shape.gate, type(bayes[2]).__name__
        ((1, 4), 'Linear')
    """
    priors, biases = (everywhere(one) if isinstance(one, Prior) else one for one in (prior, bias_prior))
    assert priors is not None
    grouping = grouping or priors.groupings[0]
    if grouping not in priors.groupings:
        raise ValueError(f"grouping {grouping!r} is not defined for this prior; allowed: {', '.join(priors.groupings)}")
    net = copy.deepcopy(net)
    modules = dict(net.named_modules(remove_duplicate=False))
    if among is None:
        paths = [path for path, module in modules.items() if type(module) in OPS]
    else:
        paths = [path for path, module in modules.items() if _weight_of(path) in among and operation_of(module)]
    kept = [path for path in paths if _frozen(modules[path], "weight")]
    kept += [path for path in paths if any(fnmatchcase(path, pattern) for pattern in keep)]
    chosen = [path for path in paths if path not in kept]
    if not chosen and not more:
        kinds = ", ".join(sorted(kind.__name__ for kind in OPS))
        raise ValueError(f"the network has no layer to put a prior on (supported: {kinds}; kept as is: {len(paths)})")
    _refuse_shared(net, paths)
    for path in chosen:
        module = net.get_submodule(path)
        name = _weight_of(path)
        weight = module.get_parameter("weight")
        own = priors.of(name)
        assert own is not None
        shape = LayerShape(name, tuple(weight.shape), _grouping_of(module, priors.grouping(name, grouping)))
        bias_name = f"{path}.bias" if path else "bias"
        layer = BayesLayer(module, shape, own, biases.of(bias_name) if biases and not _frozen(module, "bias") else None)
        if not path:
            return layer
        parent, _, leaf = path.rpartition(".")
        setattr(net.get_submodule(parent), leaf, layer)
    return net


def _frozen(module: nn.Module, role: str) -> bool:
    """Whether a module's parameter of this role must not change."""
    own = module._parameters.get(role)
    return own is not None and not own.requires_grad


def _weight_of(path: str) -> str:
    """Name of the weight of the module at a path."""
    return f"{path}.weight" if path else "weight"


def plain_weights(net: nn.Module, graph: Graph) -> list[str]:
    """Names of the weights whose modules a layer with a prior can stand in for.

    The graph uses such a weight as that of a layer; its module is of a supported class or a subclass, is called once
    with its input and nothing else, and returns what the class's own operation gives, in evaluation and in training
    mode, hooks included.

    Args:
        net: the network.
        graph: what was captured of it.

    Examples:
        >>> from pyro_compress.graph.capture import capture
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> plain_weights(net, capture(net, (3,)))
        ['0.weight', '2.weight']
    """
    uses = Counter(name for node in graph.nodes for name in node.parameters.values())
    weights = (node.parameters["weight"] for node in graph.nodes if is_weighted(node.op))
    used = {name for name in weights if uses[name] == 1}
    tried = trial(net)
    paths = [path for path, _ in tried.named_modules(remove_duplicate=False) if _weight_of(path) in used]
    calls: dict[str, list[bool]] = {path: [] for path in paths if operation_of(tried.get_submodule(path))}
    for path, found in calls.items():
        _watch(tried.get_submodule(path), found)
    for training in (False, True):
        outputs_of(tried.train(training), examples(net, graph, 3), "with its layers watched")
    return [_weight_of(path) for path, found in calls.items() if found == [True, True]]


def left_out(net: nn.Module, graph: Graph, plain: Collection[str], keep: tuple[str, ...] = ()) -> str:
    """Which weights of a network that the graph uses get no prior, though nobody asked for that; empty if none.

    Args:
        net: the network.
        graph: what was captured of it.
        plain: names of the weights that can have a prior.
        keep: layers that the user keeps as they are.
    """
    layers = [node.parameters["weight"] for node in graph.nodes if is_weighted(node.op)]
    values = [node.parameters["value"] for node in graph.nodes if node.op == "constant"]
    parameters = dict(net.named_parameters(remove_duplicate=False))
    wide = [name for name in values if name in parameters and sum(size > 1 for size in parameters[name].shape) > 1]
    kept = [name for name in layers if any(fnmatchcase(name.rpartition(".")[0], pattern) for pattern in keep)]
    names = sorted({*layers, *wide} - {*plain, *kept})
    return f"no prior on {', '.join(names)}: not the weight of a layer that computes nothing else" if names else ""


def _watch(module: nn.Module, found: list[bool]) -> None:
    """Let a module note of each of its calls whether its output is that of its class's operation on its input."""
    given: list[tuple[object, ...]] = []

    def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given.append((*args, *kwargs))

    def after(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        wanted = None
        if len(given) and len(x := given.pop()) == 1 and isinstance(x[0], Tensor) and (op := operation_of(module)):
            wanted = op.function(x[0], module.get_parameter("weight"), module._parameters["bias"])
        if wanted is None or not isinstance(output, Tensor) or output.shape != wanted.shape:
            found.append(False)
        else:
            found.append(torch.allclose(output, wanted, 1e-4, 1e-6, equal_nan=True))

    module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    module.register_forward_hook(after)


def check_keep(net: nn.Module, keep: tuple[str, ...]) -> None:
    """Refuse patterns that no layer's path matches.

    Raises:
        ValueError: names the pattern, and the layers there are.
    """
    paths = [path for path, module in net.named_modules(remove_duplicate=False) if _has_weights(module)]
    for pattern in keep:
        if not any(fnmatchcase(path, pattern) for path in paths):
            more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
            raise ValueError(f"keep {pattern!r} matches no layer; the layers are {', '.join(paths[:8])}{more}")


def _has_weights(module: nn.Module) -> bool:
    own = module._parameters.values()
    return operation_of(module) is not None or any(one is not None and one.dim() > 1 for one in own)


def _grouping_of(module: nn.Module, grouping: str) -> str:
    """The grouping of one layer."""
    if grouping == "filter":
        return "input" if isinstance(module, nn.Linear) else "output"
    return "output" if grouping == "input" and getattr(module, "groups", 1) != 1 else grouping


def _refuse_shared(net: nn.Module, paths: list[str]) -> None:
    """A weight that appears twice would be two sites with one posterior: not what mean field means."""
    seen: dict[int, str] = {}
    for path in paths:
        weight = net.get_submodule(path).weight
        if (first := seen.setdefault(id(weight), path)) != path:
            raise ValueError(f"{first} and {path} share their weight, which is not supported; keep both with --keep")


def bayes_layers(net: nn.Module) -> list[Drawn]:
    """The layers and tensors with a prior, in network order."""
    layers = [module for module in net.modules() if isinstance(module, Drawn)]
    return layers + [one for module in net.modules() for one in getattr(module, "_drawn_tensors", ())]
