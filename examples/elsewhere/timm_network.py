"""A network of timm with weights of your own: compressed without training, loaded again as an ordinary module.

    pip install timm
    python examples/elsewhere/timm_network.py

Here it is trained on the embedded digits for a moment; `timm.create_model(..., pretrained=True)` and a folder of images
go the same way.
"""

import sys
import tempfile
from pathlib import Path

import timm
import torch
from torch import nn

import pyro_compress as pc


def small_network(name: str, epochs: int) -> nn.Module:
    """A network of timm's on the digits, enlarged to 32 × 32."""
    torch.manual_seed(0)
    body = timm.create_model(name, num_classes=10, in_chans=1)
    net, train = nn.Sequential(nn.Upsample(scale_factor=4), body), pc.load_splits("digits").train
    optimizer = torch.optim.Adam(net.parameters())
    steps = epochs * -(-len(train) // 64)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(train.x[rows]), train.y[rows]).backward()
            optimizer.step()
            rates.step()
    return net.eval()


def main(folder: Path, name: str = "mobilenetv3_small_050", epochs: int = 12) -> None:
    """Train, compress, load, compare."""
    splits, net = pc.load_splits("digits"), small_network(name, epochs)
    small = pc.trained(net, splits).compress(tolerance=0.01)
    print(small)
    back = pc.load(small.save(folder / "digits.pcn"))
    with torch.no_grad():
        error = [1 - float((one(splits.test.x).argmax(1) == splits.test.y).float().mean()) for one in (net, back)]
    print(f"test error given {error[0]:.2%}, from the file {error[1]:.2%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
