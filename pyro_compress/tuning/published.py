"""Points of other people's, and what it takes to lie beside them in a picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """A network that somebody compressed.

    Attributes:
        name: whose.
        error: share of the test examples that it gets wrong.
        bytes: of its file, or of the storage that the paper computed.
    """

    name: str
    error: float
    bytes: int


_LENET_300_100, _LENET_5 = 1_066_440, 1_724_320
"""Bytes of the dense networks in float32."""

PUBLISHED: dict[tuple[str, str], tuple[Reference, ...]] = {
    ("mnist", "lenet-300-100"): (
        Reference("Sparse VD (Molchanov et al. 2017), computed", 0.0192, _LENET_300_100 // 113),
        Reference("entropy-penalised (Oktay et al. 2020)", 0.0190, 8_560),
        Reference("Deep Compression (Han et al. 2016), computed", 0.0158, _LENET_300_100 // 40),
        Reference("soft weight sharing (Ullrich et al. 2017), computed", 0.0194, _LENET_300_100 // 64),
    ),
    ("mnist", "lenet-5-caffe"): (
        Reference("Deep Compression (Han et al. 2016), computed", 0.0074, _LENET_5 // 39),
        Reference("soft weight sharing (Ullrich et al. 2017), computed", 0.0097, _LENET_5 // 162),
        Reference("BC-GHS (Louizos et al. 2017), computed", 0.0100, _LENET_5 // 771),
        Reference("entropy-penalised (Oktay et al. 2020)", 0.0090, 2_840),
        Reference("MIRACLE (Havasi et al. 2019)", 0.0069, 3_030),
        Reference("MIRACLE (Havasi et al. 2019)", 0.0096, 1_520),
    ),
}
"""(data set, network) -> test error and size as their papers print them; a size that is no file is called computed."""
