"""Points that no other dominates, and how much they dominate: both coordinates are to be small."""

from __future__ import annotations

from collections.abc import Sequence

Pair = tuple[float, float]
TOLERANCE = 0.005
"""Of a whole front, the best is the smallest file within half a point of its lowest validation error."""


def on_front(points: Sequence[Pair]) -> list[int]:
    """Indices of the points that no other dominates, by the second coordinate; of equal points the first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0], i))
    found, best = list[int](), float("inf")
    for index in order:
        if points[index][0] < best:
            found.append(index)
            best = points[index][0]
    return found


def best_of(points: Sequence[Pair], objective: str, bound: float) -> int | None:
    """Index of what an objective takes.

    Args:
        points: validation error and bytes, each.
        objective: name among those of `SearchConfig`.
        bound: of error or bytes, where the objective has one.

    Returns:
        None where nothing meets the bound.

    Examples:
        >>> points = [(0.02, 900), (0.024, 500), (0.1, 90)]
        >>> best_of(points, "pareto", 0.0), best_of(points, "error-at-bytes", 400), best_of(points, "bytes-at-error", 0)
        (1, 2, None)
    """
    if objective == "error-at-bytes":
        return min((i for i, p in enumerate(points) if p[1] <= bound), key=lambda i: points[i][0], default=None)
    lowest = min((error for error, _ in points), default=0.0)
    most = bound if objective == "bytes-at-error" else lowest + TOLERANCE
    return min((i for i, p in enumerate(points) if p[0] <= most), key=lambda i: points[i][1], default=None)


def hypervolume(points: Sequence[Pair], reference: Pair) -> float:
    """Area between the points and a reference, counting only what lies below it in both coordinates."""
    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    area, height = 0.0, reference[0]
    for index in on_front(inside):
        error, size = inside[index]
        area += (height - error) * (reference[1] - size)
        height = error
    return area
