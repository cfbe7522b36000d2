"""Weights while they are pruned: what `fit --snapshots` stores for the animation of the report.

`snapshots.safetensors` holds, per weight tensor, `(frames, out, ...)` in half precision: the posterior mean at the end
of some epochs, zero where the weight scores below its criterion's threshold; and `epochs`, which ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.prune import kept
from pyro_compress.types import LayerPosterior

MOST_FRAMES = 24
"""More epochs than this are thinned out."""


class Frames:
    """Writes frames during a fit; call it at the end of every epoch with a posterior. A resumed fit goes on with them.

    Args:
        folder: where the frames of a running fit lie.
        criterion: pruning criterion.
        epochs: epochs that will come.
    """

    def __init__(self, folder: Path, criterion: str, epochs: int):
        self.folder, self.criterion, self.every = folder, criterion, -(-epochs // MOST_FRAMES)
        folder.mkdir(exist_ok=True)

    def __call__(self, epoch: int, layers: dict[str, LayerPosterior]) -> None:
        """Write the pruned weights, or nothing, if this epoch is not among the frames."""
        if epoch % self.every:
            return
        masks = kept(layers, self.criterion)
        frame = {name: torch.where(masks[name], layer.mean, 0.0).half() for name, layer in layers.items()}
        write_atomically(self.folder / f"{epoch:06d}.safetensors", save(frame))

    def collect(self, path: Path) -> None:
        """Put all frames into one file; they go with the checkpoints, which they must not outlive."""
        files = sorted(self.folder.glob("*.safetensors"))
        frames = [load_file(file) for file in files]
        stacked = {name: torch.stack([frame[name] for frame in frames]) for name in (frames[0] if frames else ())}
        stacked["epochs"] = torch.tensor([int(file.stem) for file in files])
        write_atomically(path, save(stacked))


def read_snapshots(path: Path, layers: Mapping[str, LayerPosterior]) -> tuple[list[int], dict[str, Tensor]]:
    """Epochs and frames of every weight tensor.

    Args:
        path: a run's `snapshots.safetensors`.
        layers: the run's weights, of which the frames are.

    Raises:
        ValueError: a damaged or foreign file.
        OSError: it cannot be read.
    """
    try:
        tensors = load_file(path)
        epochs = tensors.pop("epochs")
        if epochs.dtype != torch.int64 or epochs.dim() != 1 or not tensors.keys() <= layers.keys():
            raise ValueError("it needs the numbers of its epochs, and tensors of the run's weights")
        for name, frames in tensors.items():
            if frames.dtype != torch.float16 or frames.shape != (len(epochs), *layers[name].mean.shape):
                raise ValueError(f"{name} holds {frames.dtype} of shape {tuple(frames.shape)}")
        return epochs.tolist(), tensors
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no snapshots of this program: {error}") from error
