"""Small random networks of everything that `capture` reads: a seed -> a module, its input shape."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_compress.networks.attention import split_attention

Shape = tuple[int, ...]
Make = Callable[[random.Random, Shape], nn.Module]
OUTPUTS = 3


class Apply(nn.Module):
    """A function of a value, and of the modules or tensors it comes with."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module, **tensors: Tensor):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.names = list(tensors)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts, *(getattr(self, name) for name in self.names))


class Same(nn.Linear):
    """A subclass that is a linear layer."""


class Rectified(nn.Linear):
    """A subclass that is more than one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class ByHand(nn.Module):
    """A linear layer whose bias is added outside, under the name that torch gives a bias."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, into) / into**0.5), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) + self.bias


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu, torch.tanh, torch.sigmoid, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.relu6, F.selu, torch.sin,
    F.gelu, F.softplus, F.elu,
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: F.leaky_relu(x, 0.3),
    lambda x: F.elu(x, 0.6),
    lambda x: F.softplus(x, 1, 40),
    lambda x: F.hardtanh(x, -0.4, 0.7),
]  # fmt: skip
ARITHMETIC: list[Callable[[Tensor], Tensor]] = [
    lambda x: x * 1.5, lambda x: x + 0.5, lambda x: 1 - x, lambda x: -x, lambda x: x / 3, lambda x: x - 2,
    lambda x: x.contiguous().clone(),
    lambda x: x + torch.tanh(x), lambda x: x * torch.sigmoid(x), lambda x: x - x.relu(),
    lambda x: x / (torch.sigmoid(x) + 1), lambda x: F.dropout(x, 0.3, training=False), lambda x: x.type_as(x),
]  # fmt: skip


def rectified_view(x: Tensor) -> Tensor:
    x = x * 1.0
    x.flatten(1).relu_()
    return x


def changed_part(x: Tensor) -> Tensor:
    x = x + 0.1
    y = F.dropout(x, 0.5, training=False)
    y.mul_(2).add_(0.25)
    return x + y


def rectified_twice(x: Tensor) -> Tensor:
    y = F.relu(x - 0.2, inplace=True)
    y += x
    return torch.relu_(y)


IN_PLACE: list[Callable[[Tensor], Tensor]] = [rectified_view, changed_part, rectified_twice]


def activation(rng: random.Random, shape: Shape) -> nn.Module:
    return Apply(rng.choice(ACTIVATIONS))


def arithmetic(rng: random.Random, shape: Shape) -> nn.Module:
    return Apply(rng.choice(ARITHMETIC))


def in_place(rng: random.Random, shape: Shape) -> nn.Module:
    return Apply(rng.choice(IN_PLACE))


def with_tensor(rng: random.Random, shape: Shape) -> nn.Module:
    own = rng.choice([shape, shape[-1:], (), (1, *shape), (*shape[:-1], 1)])
    floats, bools = torch.randn(own), torch.rand(own) > 0.3
    if rng.random() < 0.3:
        return Apply(lambda x, mask: x * mask, mask=bools)
    if rng.random() < 0.3:
        return Apply(lambda x, mask: x + mask.float(), mask=bools.int())
    return Apply(rng.choice([lambda x, t: x + t, lambda x, t: x * t, lambda x, t: t - x]), running_value=floats)


def prelu(rng: random.Random, shape: Shape) -> nn.Module:
    return nn.PReLU(rng.choice([1, shape[0]]))


def dropout(rng: random.Random, shape: Shape) -> nn.Module:
    return rng.choice([nn.Dropout(0.2), nn.AlphaDropout(0.2), nn.Dropout(0.2, inplace=True), nn.Identity()])


def softmax(rng: random.Random, shape: Shape) -> nn.Module:
    axis = rng.choice([*range(1, len(shape) + 1), -1])
    return Apply(rng.choice([lambda x: x.softmax(axis), lambda x: x.log_softmax(axis)]))


def linear(rng: random.Random, shape: Shape) -> nn.Module:
    kind = rng.choice([nn.Linear, nn.Linear, nn.Linear, Same, Rectified])
    out = rng.choice([shape[-1], shape[0], rng.randint(2, 7)])
    return kind(shape[-1], out, bias=rng.random() < 0.7) if rng.random() < 0.85 else ByHand(shape[-1], out)


def normed_linear(rng: random.Random, shape: Shape) -> nn.Module:
    out = rng.choice([shape[0], shape[-1], rng.randint(2, 7)])
    return nn.Sequential(nn.Linear(shape[-1], out), batch_norm(rng, (*shape[:-1], out)))


def batch_norm(rng: random.Random, shape: Shape) -> nn.Module:
    kind = nn.BatchNorm1d if len(shape) < 3 else nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm3d
    return kind(shape[0], eps=rng.choice([1e-5, 1e-3]), affine=rng.random() < 0.85)


def norm(rng: random.Random, shape: Shape) -> nn.Module:
    kinds = [nn.LayerNorm(shape[-1], eps=rng.choice([1e-5, 1e-3]), elementwise_affine=rng.random() < 0.7)]
    if len(shape) > 1:
        groups = [g for g in (1, 2, 3, 4) if shape[0] % g == 0]
        kinds.append(nn.GroupNorm(rng.choice(groups), shape[0], affine=rng.random() < 0.7))
        kinds.append(nn.InstanceNorm1d(shape[0], affine=rng.random() < 0.5) if len(shape) == 2 else nn.Identity())
    return rng.choice(kinds)


def conv(rng: random.Random, shape: Shape) -> nn.Module:
    rank = len(shape) - 1
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    groups = rng.choice([g for g in (1, 1, 1, 2, shape[0]) if shape[0] % g == 0])
    out = groups * rng.randint(1, 3)
    size, dilation = rng.randint(1, 3), rng.randint(1, 2)
    borders = [(0, "zeros"), (1, "zeros"), ("same", "zeros"), (1, "reflect"), (1, "circular"), (1, "replicate")]
    (padding, mode), stride = rng.choice(borders), rng.randint(1, 2)
    stride = 1 if padding == "same" else stride
    mode = "zeros" if rank == 3 and mode == "reflect" and min(shape[1:]) < 2 else mode
    return kind(shape[0], out, size, stride, padding, dilation, groups, rng.random() < 0.7, mode)


def pool(rng: random.Random, shape: Shape) -> nn.Module:
    rank = len(shape) - 1
    size, stride = rng.randint(2, 3), rng.randint(1, 2)
    padding = rng.choice([0, 1])
    largest = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    found = [largest(size, stride, padding, ceil_mode=rng.random() < 0.4), average(size, stride, padding)]
    if rank < 3:
        adaptive = [(nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)]
        found.append(rng.choice(adaptive[rank - 1])(1))
    return rng.choice(found)


def reduced(rng: random.Random, shape: Shape) -> nn.Module:
    axis, keep = rng.randint(1, len(shape)), rng.random() < 0.5
    return Apply(
        rng.choice([
            lambda x: x.mean(axis, keep), lambda x: x.sum(axis, keep), lambda x: x.amax(axis, keep),
            lambda x: x.max(axis, keep)[0], lambda x: x.mean((1, -1), keep),
        ])
    )  # fmt: skip


def reshaped(rng: random.Random, shape: Shape) -> nn.Module:
    axes = [0, *rng.sample(range(1, len(shape) + 1), len(shape))]
    found: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.transpose(1, -1), lambda x: x.permute(axes), lambda x: x.flatten(1), lambda x: x.unsqueeze(1),
        lambda x: x.reshape(x.shape[0], -1, shape[0]), lambda x: x.flatten(1, 2), lambda x: x.squeeze(1),
    ]  # fmt: skip
    return Apply(rng.choice(found))


def part(rng: random.Random, shape: Shape) -> nn.Module:
    axis = rng.choice([a for a in range(1, len(shape) + 1) if shape[a - 1] > 1] or [1])
    size = shape[axis - 1]
    half = max(size // 2, 1)
    found: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.select(axis, -1), lambda x: x.chunk(2, axis)[-1],
        lambda x: torch.cat((x, -x.relu()), axis), lambda x: x.unbind(axis)[0],
        lambda x: torch.cat(x.split(half, axis)[::-1], axis), lambda x: x[:, ::2], lambda x: x[..., -half:],
    ]  # fmt: skip
    return Apply(rng.choice(found))


def padding(rng: random.Random, shape: Shape) -> nn.Module:
    mode = rng.choice(["constant", "constant", "replicate", "circular"] if len(shape) > 1 else ["constant"])
    sizes = [rng.randint(0, 1) for _ in range(2 * (len(shape) - 1 if len(shape) > 1 else 1))]
    return Apply(lambda x: F.pad(x, sizes, mode))


def attention(rng: random.Random, shape: Shape) -> nn.Module:
    if rng.random() < 0.5:
        return Apply(lambda x: torch.softmax(x @ x.transpose(1, 2) * 0.5, -1) @ x)
    if shape[-1] % 2:
        return Apply(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    mixing = split_attention(nn.MultiheadAttention(shape[-1], 2, batch_first=True))
    return Apply(lambda x, mix: mix(x, x, x)[0], mixing)


def residual(rng: random.Random, shape: Shape) -> nn.Module:
    makers = [makers for makers in (linear, batch_norm, activation, norm, with_tensor)]
    return Apply(lambda x, f: x + fitted(f(x), x), rng.choice(makers)(rng, shape))


def fitted(y: Tensor, x: Tensor) -> Tensor:
    return y if y.shape == x.shape else x * 0.5


EVERYWHERE: list[Make] = [
    activation, activation, arithmetic, in_place, with_tensor, prelu, dropout, softmax, linear, linear, normed_linear,
    batch_norm, norm, padding, residual,
]  # fmt: skip
MORE: dict[int, list[Make]] = {
    1: [],
    2: [conv, conv, pool, reduced, reshaped, part, attention],
    3: [conv, conv, conv, pool, pool, reduced, reshaped, part],
    4: [conv, pool, reduced, reshaped, part],
}
INPUTS: list[Shape] = [(6,), (4, 6), (5, 5), (2, 6, 6), (3, 5, 7), (6, 4), (2, 3, 4, 4)]
LARGEST = 400
"""Values of one example, at most."""


def draw(seed: int, inputs: list[Shape] = INPUTS, more: list[Make] | None = None) -> tuple[nn.Module, Shape]:
    """A network of three to seven random steps and a linear layer at its end; `more` replaces what is drawn from."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    input_shape = rng.choice(inputs)
    steps, shape, wanted = list[nn.Module](), input_shape, rng.randint(3, 7)
    while len(steps) < wanted:
        step = rng.choice(more or EVERYWHERE + MORE[len(shape)])(rng, shape) if len(shape) in MORE else nn.Flatten()
        try:
            with torch.no_grad():
                found = step.eval()(torch.zeros(2, *shape))
        except (RuntimeError, ValueError, IndexError, AssertionError):
            continue  # for another shape
        if found.shape[0] == 2 and 0 < found[0].numel() <= LARGEST and found.dim() > 1:
            steps, shape = [*steps, step], tuple(found.shape[1:])
    net = nn.Sequential(*steps, nn.Flatten(), nn.Linear(shape[0] if len(shape) == 1 else found[0].numel(), OUTPUTS))
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    return net.train(), input_shape
