"""Points that no other dominates, and how much they dominate: both coordinates are to be small."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[float, float]


def on_front(points: Sequence[Pair]) -> list[int]:
    """Indices of the points that no other dominates, by the second coordinate; of equal points the first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0], i))
    found, best = list[int](), float("inf")
    for index in order:
        if points[index][0] < best:
            found.append(index)
            best = points[index][0]
    return found


def hypervolume(points: Sequence[Pair], reference: Pair) -> float:
    """Area between the points and a reference, counting only what lies below it in both coordinates."""
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    area, height = 0.0, reference[0]
    for index in on_front(inside):
        error, size = inside[index]
        area += (height - error) * (reference[1] - size)
        height = error
    return area
