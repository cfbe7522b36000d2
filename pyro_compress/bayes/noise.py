"""Random numbers of a captured step: taken out of its graph, and drawn at a fraction of what ATen asks on a CPU.

A step's draws of N(0, 1) and of fair coins become views of two flat buffers, which are the graph's inputs. On a CPU
filling them by `normal_` and `bernoulli_` costs as much as a third of an Adam step (Mersenne twister, one number at a
time). `fast_fill` computes them from a counter instead: a keyed integer hash, vectorised by inductor, then Box and
Muller. Its keys come from torch's default generator, so `torch.manual_seed` still determines everything.

Where processes share weights, each fills in its rows of the draws that one process would make, by their places in its
buffer (`placed_fill`): the counter knows no order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx

import pyro_compress.bayes.draws  # noqa: F401 - registers the operations of `PLACED`
from pyro_compress.bayes.compiler import compiled, traced
from pyro_compress.bayes.elementary import polynomial

ALIGN = 32
"""Every draw starts at a multiple of so many floats, for vector loads."""

SINE = (-0.005990654230117798, 0.0804760605096817, -0.598278820514679, 2.549879312515259, -5.167677402496338,
        3.1415913105010986)  # fmt: skip
"""sin(πt) / t on [-1, 1] as a polynomial in t², to 6e-7 (its Chebyshev series). Most of what a library's sine costs
goes into bringing angles into this range, where ours are to begin with."""
COSINE = (0.0015939107397571206, -0.025358984246850014, 0.23502980172634125, -1.3351584672927856, 4.058694839477539,
          -4.93480110168457, 1.0)  # fmt: skip
"""cos(πt) likewise."""

PLACED = {torch.ops.pyro_compress.normal_rows.default: True, torch.ops.pyro_compress.coin_rows.default: False}
"""Operations that draw rows of a whole -> whether normal."""

Fill = Callable[[], None]


class Place(NamedTuple):
    """Rows of a draw that one process would make: from `first` on, `step` apart; the draw begins at `start`."""

    start: int
    first: int = 0
    step: int = 1


@dataclass(frozen=True)
class Noise:
    """Flat buffers of a step's draws.

    Attributes:
        normal: N(0, 1).
        coin: 0 or 1 with probability ½.
        slices: (whether normal, start, shape) of every draw, in the order of the program.
        places: where each lies in the buffers of one process.
        sizes: of these buffers, of normals and of coins.
    """

    normal: Tensor
    coin: Tensor
    slices: tuple[tuple[bool, int, tuple[int, ...]], ...]
    places: tuple[Place, ...] = ()
    sizes: tuple[int, int] = (0, 0)

    def views(self) -> list[tuple[bool, Tensor]]:
        """Every draw as a view, with whether it is normal."""
        found = []
        for is_normal, start, shape in self.slices:
            flat = self.normal if is_normal else self.coin
            found.append((is_normal, flat[start : start + math.prod(shape)].view(shape)))
        return found

    def fill_reference(self) -> None:
        """Draw by ATen, in the order of the program: exactly what the eager step draws."""
        for is_normal, view in self.views():
            view.normal_() if is_normal else view.bernoulli_(0.5)


def lift_noise(graph: fx.GraphModule, device: torch.device) -> Noise:
    """Turn a graph's draws into views of its last two inputs, `normal` and `coin`; other random operations stay.

    Args:
        graph: the traced step, changed in place; its last two placeholders are the (still unused) buffers.
        device: where the buffers lie.
    """
    *_, normal, coin = [node for node in graph.graph.nodes if node.op == "placeholder"]
    slices: list[tuple[bool, int, tuple[int, ...]]] = []
    places: list[Place] = []
    used, whole = {True: 0, False: 0}, {True: 0, False: 0}
    for node in list(graph.graph.nodes):
        is_normal = _kind_of_draw(node)
        if is_normal is None:
            continue
        shape, start = tuple(node.meta["val"].shape), used[is_normal]
        slices.append((is_normal, start, shape))
        used[is_normal] += _aligned(math.prod(shape))
        rows, *at = node.args[1:] if node.target in PLACED else (shape[:1] or (1,))
        places.append(Place(whole[is_normal], *at))
        whole[is_normal] += _aligned(rows * math.prod(shape[1:]))
        with graph.graph.inserting_before(node):
            strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            view = graph.graph.call_function(
                torch.ops.aten.as_strided.default, (normal if is_normal else coin, list(shape), strides, start)
            )
            if (dtype := node.meta["val"].dtype) != torch.float32:
                view = graph.graph.call_function(torch.ops.aten._to_copy.default, (view,), {"dtype": dtype})
        node.replace_all_uses_with(view)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    buffers = {kind: torch.zeros(max(size, ALIGN), device=device) for kind, size in used.items()}
    sizes = max(whole[True], ALIGN), max(whole[False], ALIGN)
    return Noise(buffers[True], buffers[False], tuple(slices), tuple(places), sizes)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _kind_of_draw(node: fx.Node) -> bool | None:
    """True for a standard normal draw, False for fair coins, None for everything else."""
    if node.target in PLACED:
        return PLACED[node.target]
    if node.target in (torch.ops.aten.randn_like.default, torch.ops.aten.randn.default):
        return True
    if node.target is torch.ops.aten.normal_.default and node.args[1:] in ((), (0,), (0, 1)) and not node.kwargs:
        return True
    if node.target is torch.ops.aten.bernoulli_.float and node.args[1:] in ((), (0.5,)) and not node.kwargs:
        return False
    return None


def fast_fill(noise: Noise) -> Fill:
    """A compiled function that fills the buffers, with fresh keys from torch's default generator at every call.

    Inductor's own generator of N(0, 1) is ten times slower on a CPU than ATen's, hence the arithmetic.
    """
    keys = torch.zeros(3, dtype=torch.int32)
    first, second = noise.normal.chunk(2)
    has_coins = any(not is_normal for is_normal, _, _ in noise.slices)
    normals = compiled(traced(standard_normal, (first, second, keys)), (first, second, keys))
    coins = compiled(traced(fair_coins, (noise.coin, keys)), (noise.coin, keys)) if has_coins else None

    def fill() -> None:
        keys.random_()
        normals(first, second, keys)
        if coins:
            coins(noise.coin, keys)

    return fill


def placed_fill(noise: Noise, new_keys: Fill, keys: Tensor, is_compiled: bool) -> Fill:
    """A function that fills the buffers with what one process's buffers hold at their places.

    Args:
        noise: the buffers.
        new_keys: sets the keys for a step.
        keys: three int32, the same in all processes.
        is_compiled: whether inductor compiles it.

    Raises:
        ValueError: more draws than a counter of 31 bits tells apart.
    """
    if max(noise.sizes) >= 1 << 31:
        raise ValueError(f"--shard: a step draws {max(noise.sizes):,} numbers; at most 2^31 are supported")
    draws = list(zip(noise.slices, noise.places, strict=True))
    views = [view.view(len(view) if view.dim() else 1, -1) for _, view in noise.views()]

    def fill(*given: Tensor) -> tuple[()]:
        *views, keys = given
        for view, ((is_normal, _, _), place) in zip(views, draws, strict=True):
            at = _positions(view, place)
            view.copy_(normal_at(at, noise.sizes[0] // 2, keys) if is_normal else coin_at(at, keys))
        return ()

    run: Callable[..., object] = fill
    if is_compiled and views:
        run = compiled(traced(fill, (*views, keys)), (*views, keys))

    def filled() -> None:
        new_keys()
        run(*views, keys)

    return filled


def _positions(view: Tensor, place: Place) -> Tensor:
    """Positions of the values of some rows, `(rows, length)`, in the buffer of one process."""
    rows, length = view.shape
    of_row = torch.arange(rows, dtype=torch.int32, device=view.device) * (place.step * length)
    return (of_row + (place.start + place.first * length))[:, None] + torch.arange(
        length, dtype=torch.int32, device=view.device
    )


def normal_at(position: Tensor, half: int, keys: Tensor) -> Tensor:
    """What `standard_normal` puts at positions of its two buffers together, of `half` values each."""
    late = position >= half
    one, other = _two_numbers(torch.where(late, position - half, position), keys)
    radius, half_turns = _radius(one), other.to(torch.float32) * 2.0**-31
    square = half_turns * half_turns
    return radius * torch.where(late, half_turns * polynomial(SINE, square), polynomial(COSINE, square))


def coin_at(position: Tensor, keys: Tensor) -> Tensor:
    """What `fair_coins` puts at positions of its buffer."""
    return _shift(_mix(_mix(position ^ keys[1]) + keys[2]), 31).to(torch.float32)


def standard_normal(first: Tensor, second: Tensor, keys: Tensor) -> None:
    """Fill two flat float32 buffers of one size with N(0, 1), from three int32 keys (Box and Muller 1958)."""
    one, other = _two_numbers(torch.arange(len(first), dtype=torch.int32, device=first.device), keys)
    radius = _radius(one)
    half_turns = other.to(torch.float32) * 2.0**-31  # of the angle, in [-1, 1]
    square = half_turns * half_turns
    first.copy_(radius * polynomial(COSINE, square))
    second.copy_(radius * (half_turns * polynomial(SINE, square)))


def _two_numbers(counter: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit numbers of every count."""
    one = _two_rounds(_spread(counter ^ keys[0]) + keys[1])
    return one, _two_rounds(one ^ keys[2])


def _radius(number: Tensor) -> Tensor:
    """Of Box and Muller. Float32 holds 24 of the 32 bits; what rounds to 0 lies below 2^-26."""
    uniform = (number.to(torch.float32) * 2.0**-32 + 0.5).clamp_min(2.0**-27)
    return (-2 * uniform.log()).sqrt()


def fair_coins(out: Tensor, keys: Tensor) -> None:
    """Fill a flat float32 buffer with 0 and 1, from three int32 keys."""
    out.copy_(coin_at(torch.arange(len(out), dtype=torch.int32, device=out.device), keys))


def _spread(x: Tensor) -> Tensor:
    """First of the two rounds: neighbours end far from each other."""
    x = (x ^ _shift(x, 16)) * 0x7FEB352D
    return x ^ _shift(x, 15)


def _two_rounds(x: Tensor) -> Tensor:
    """`_mix` up to its last line, which concerns the lower half only; the upper 24 bits are good."""
    return _spread(x) * (0x846CA68B - (1 << 32))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers with almost no bias between input and output bits ("lowbias32", Wellons 2018)."""
    x = _two_rounds(x)
    return x ^ _shift(x, 16)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own is arithmetic."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)
