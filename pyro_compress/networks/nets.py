"""Networks: a name -> a plain `nn.Module` that maps `(batch, *input_shape)` to `(batch, classes)` logits.

To add one, write a function of `input_shape`, `classes` and `hidden` (any subset) and add a row to `NETS`. Users
name a function of their own as `package.module:function`, a network of torchvision as `torchvision:NAME`, and that
of a compressed file by its path.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pyro_compress.foreign import meant, unknown
from pyro_compress.graph.checked import evaluating
from pyro_compress.graph.packing import with_one_input
from pyro_compress.imports import imported
from pyro_compress.inputs import Input
from pyro_compress.networks.attention import split_attention
from pyro_compress.networks.decoded import SUFFIX, decoded_net
from pyro_compress.networks.sequences import gpt, gru, lstm
from pyro_compress.networks.spelling import plainly_named
from pyro_compress.networks.vision import fcn_1d, resnet_18, resnet_20, resnet_50, unet, vgg_16, vit_tiny


def mlp(input_shape: tuple[int, ...], classes: int, hidden: tuple[int, ...] = (500, 500)) -> nn.Module:
    """Fully connected ReLU network; inputs are flattened."""
    widths = (math.prod(input_shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for into, out in itertools.pairwise(widths):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def lenet_300_100(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998): two hidden layers of 300 and 100 ReLU units."""
    return mlp(input_shape, classes, (300, 100))


def lenet_5_caffe(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Caffe's LeNet-5: 20 and 50 5×5 filters, each max-pooled, no ReLU after the convolutions, 500 hidden units."""
    return _lenet_5(input_shape, classes, nn.Identity)


def lenet_5_relu(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The same layout as `lenet-5-caffe` with a ReLU after each pooled convolution."""
    return _lenet_5(input_shape, classes, nn.ReLU)


def _lenet_5(input_shape: tuple[int, ...], classes: int, activation: type[nn.Module]) -> nn.Module:
    if len(input_shape) != 3 or min(input_shape[1:]) < 16:
        raise ValueError(f"LeNet-5 takes images (channels, height, width) of 16×16 pixels or more, got {input_shape}")
    channels, height, width = input_shape
    side = [((size - 4) // 2 - 4) // 2 for size in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        activation(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        activation(),
        nn.Flatten(),
        nn.Linear(50 * side[0] * side[1], 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


NETS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet-300-100": lenet_300_100,
    "lenet-5-caffe": lenet_5_caffe,
    "lenet-5-relu": lenet_5_relu,
    "vgg-16": vgg_16,
    "resnet-18": resnet_18,
    "resnet-20": resnet_20,
    "resnet-50": resnet_50,
    "vit-tiny": vit_tiny,
    "fcn-1d": fcn_1d,
    "lstm": lstm,
    "gru": gru,
    "gpt": gpt,
    "unet": unet,
}
OTHERS = "torchvision:NAME, package.module:function or FILE.pcn"
AUXILIARY = ("googlenet", "inception_v3")
"""Of torchvision's, those that have more heads while they are trained; they are built without."""
OFFERED = ("input_shape", "classes", "hidden", "vocabulary", "inputs")
"""What a function that builds a network may have parameters for."""


def build_net(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    hidden: tuple[int, ...] = (),
    vocabulary: int = 0,
    inputs: Sequence[Input] = (),
) -> nn.Module:
    """Build a network by name; a function receives those of the last five arguments that it has parameters for.

    Args:
        name: as the module says.
        input_shape: shape of one example.
        classes: outputs; at every position, where each has a class.
        hidden: widths of hidden layers.
        vocabulary: how many kinds of tokens the inputs are of; 0: they are no tokens.
        inputs: of data with several inputs, what lies in a row; a function gets their shapes by name.

    Of a `.pcn` file it is the architecture, with new random weights.

    Attention layers get a linear layer per projection (`pyro_compress.networks.attention`), with the weights
    they came with.

    Raises:
        ValueError: unknown name, a function that cannot be imported, wants other arguments, or returns no module; a
            file that is damaged, or for other data.

    Examples:
        >>> import pyro_compress as pc
        >>> net = pc.build_net("resnet-18", (3, 32, 32), 10)
        >>> sum(parameter.numel() for parameter in net.parameters())
        11173962
    """
    if name.startswith("torchvision:"):
        return plainly_named(split_attention(_torchvision(name.removeprefix("torchvision:"), classes)))
    if name.endswith(SUFFIX):
        return decoded_net(Path(name), input_shape, classes)
    make = NETS[name] if name in NETS else _import(name)
    shapes = {one.name: one.shape for one in inputs}
    offered = dict(zip(OFFERED, (input_shape, classes, hidden, vocabulary, shapes), strict=True))
    net = make(**{key: offered[key] for key in _wanted(name, make) if key in offered})
    if not isinstance(net, nn.Module):
        raise ValueError(f"{name} returned {net!r:.40}; it must return a torch.nn.Module")
    net = with_one_input(split_attention(net), inputs)
    return plainly_named(_with_shapes(net, input_shape, vocabulary))


def _with_shapes(net: nn.Module, input_shape: tuple[int, ...], vocabulary: int) -> nn.Module:
    """A network whose lazy modules have seen an example, and know their shapes by it."""
    if not any(is_lazy(parameter) for parameter in net.parameters()):
        return net
    try:
        with torch.no_grad(), evaluating(net):
            net(torch.zeros(2, *input_shape, dtype=torch.int64 if vocabulary else torch.float32))
    except Exception as error:
        raise ValueError(f"the network cannot read examples of shape {input_shape}: {error}") from error
    return net


def _torchvision(name: str, classes: int) -> nn.Module:
    """One of torchvision's classifiers, with random weights."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = meant(name, known) or f"; it has {', '.join(known[:8])}, ..."
        raise ValueError(f"torchvision has no classifier {name!r}{hint}")
    more = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    net: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **more)
    return net


def _wanted(name: str, make: Callable[..., nn.Module]) -> list[str]:
    """The parameters of a function, where those without a default are all among `OFFERED`."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError as error:  # of a built-in
        raise ValueError(f"network {name!r} cannot be used: {error}") from error
    fillers = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    for one in parameters:
        not_given = one.name not in OFFERED or one.kind is inspect.Parameter.POSITIONAL_ONLY
        if not_given and one.default is inspect.Parameter.empty and one.kind not in fillers:
            raise ValueError(
                f"network {name!r} needs {one.name!r}; a function of yours gets what it names of "
                f"{', '.join(OFFERED)}, by keyword: rename it, or give it a default"
            )
    return [one.name for one in parameters]


def _import(name: str) -> Callable[..., nn.Module]:
    """Import `package.module:function`."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise unknown("network", name, NETS, OTHERS)
    found: Callable[..., nn.Module] = imported(name, "network")
    if not callable(found):
        raise ValueError(f"network {name!r} is {found!r:.40}, not a function")
    return found
