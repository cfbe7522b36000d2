"""Networks of the literature on convolutional nets and transformers, in the layouts that small images call for.

They are made of torchvision's blocks under torchvision's names, so that its weights fit wherever the layouts agree.
`width` scales the channels; the published networks have the default.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 64
"""Images of this many pixels a side or more get the stem of ImageNet: a 7×7 convolution of stride 2, then pooling."""


def vgg_16(input_shape: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """VGG-16 (Simonyan & Zisserman 2015) for CIFAR: batch norm, and a classifier with one hidden layer of 512 units.

    15.0 million parameters; the layout that Molchanov et al. 2017 and Louizos et al. 2017 prune, without its dropout.
    """
    channels, height, width_pixels = _image(input_shape, 32)
    layers: list[nn.Module] = []
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        for _ in range(depth):
            out = width * min(2**stage, 8)
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    hidden = 8 * width
    head = nn.Linear(channels * (height // 32) * (width_pixels // 32), hidden, bias=False)
    net = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers), flatten=nn.Flatten(),
            classifier=nn.Sequential(head, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)),
        )
    )  # fmt: skip
    return _he(net)


def resnet_18(input_shape: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """ResNet-18 (He et al. 2016); below 64 pixels a side with a 3×3 stem and no pooling, as is usual for CIFAR."""
    from torchvision.models.resnet import BasicBlock

    return _resnet(BasicBlock, (2, 2, 2, 2), input_shape, classes, width)


def resnet_20(input_shape: tuple[int, ...], classes: int, width: int = 16) -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016, section 4.2): three stages of three blocks, 16, 32 and 64 channels.

    272,474 parameters with ten classes: where a stage halves the image, the shortcut is a 1×1 convolution (their
    option B; option A, which pads with zero channels, has 2,752 fewer).
    """
    from torchvision.models.resnet import BasicBlock

    return _resnet(BasicBlock, (3, 3, 3), input_shape, classes, width)


def resnet_50(input_shape: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """ResNet-50 (He et al. 2016), with the stem of `resnet_18`."""
    from torchvision.models.resnet import Bottleneck

    return _resnet(Bottleneck, (3, 4, 6, 3), input_shape, classes, width)


def _resnet(block: Any, depths: tuple[int, ...], input_shape: tuple[int, ...], classes: int, width: int) -> nn.Module:
    channels, height, width_pixels = _image(input_shape, 8)
    large = min(height, width_pixels) >= LARGE
    stem = nn.Conv2d(channels, width, 7, 2, 3, bias=False) if large else nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv1=stem, bn1=nn.BatchNorm2d(width), relu=nn.ReLU())
    if large:
        parts["maxpool"] = nn.MaxPool2d(3, 2, 1)
    into = width
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        blocks = []
        for index in range(depth):
            stride = 2 if stage and not index else 1
            out = planes * block.expansion
            aside = None
            if stride != 1 or into != out:
                aside = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            blocks.append(block(into, planes, stride, aside))
            into = out
        parts[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(into, classes)}
    return _he(nn.Sequential(parts))


def vit_tiny(input_shape: tuple[int, ...], classes: int, width: int = 192) -> nn.Module:
    """Vision transformer (Dosovitskiy et al. 2021; torchvision's) of the width of DeiT-Ti, for small images.

    Six blocks with three heads on 8 × 8 patches of a square image and a class token; 2.7 million parameters.
    """
    from torchvision.models import VisionTransformer

    channels, side, other = _image(input_shape, 8)
    if side != other or side % 8:
        raise ValueError(f"vit-tiny takes square images whose side is a multiple of 8, got {input_shape}")
    net = VisionTransformer(
        image_size=side, patch_size=side // 8, num_layers=6, num_heads=3, hidden_dim=width, mlp_dim=4 * width,
        num_classes=classes,
    )  # fmt: skip
    if channels != 3:
        net.conv_proj = nn.Conv2d(channels, width, side // 8, side // 8)
    return net


def fcn_1d(input_shape: tuple[int, ...], classes: int, width: int = 128) -> nn.Module:
    """Fully convolutional network for time series (Wang et al. 2017): three 1-D convolutions, averaged over time."""
    if len(input_shape) != 2:
        raise ValueError(
            f"fcn-1d takes series (channels, length), got {input_shape}; for series in arrays give --series"
        )
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for out, kernel in ((width, 7), (2 * width, 5), (width, 3)):
        layers += [nn.Conv1d(channels, out, kernel, padding="same", bias=False), nn.BatchNorm1d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, classes))


def _image(input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"this network takes images (channels, height, width) of {smallest}×{smallest} pixels or more, "
            f"got {input_shape}"
        )
    channels, height, width = input_shape
    return channels, height, width


def _he(net: nn.Module) -> nn.Module:
    """Start the convolutions as He et al. 2015 do, as torchvision does."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


class _Twice(nn.Sequential):
    """Two 3×3 convolutions, each with batch norm and ReLU."""

    def __init__(self, into: int, out: int):
        layers: list[nn.Module] = []
        for channels in (into, out):
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        super().__init__(*layers)


class Unet(nn.Module):
    """U-Net of three scales: halved by pooling, doubled by transposed convolutions, joined across."""

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__()
        self.down = nn.ModuleList([_Twice(channels, width), _Twice(width, 2 * width)])
        self.middle = _Twice(2 * width, 4 * width)
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * size, size, 2, stride=2) for size in (2 * width, width)])
        self.join = nn.ModuleList([_Twice(2 * size, size) for size in (2 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, classes, height, width)`."""
        across = []
        for block in self.down:
            x = block(x)
            across.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up, join, beside in zip(self.up, self.join, reversed(across), strict=True):
            x = join(torch.cat([up(x), beside], 1))
        logits: Tensor = self.head(x)
        return logits


def unet(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Small U-Net (Ronneberger et al. 2015): 16, 32 and 64 channels, a class for every pixel."""
    if len(input_shape) != 3 or any(side % 4 or not side for side in input_shape[1:]):
        raise ValueError(
            f"unet takes images (channels, height, width) whose sides are multiples of 4, got {input_shape}; "
            "--image-size brings them there"
        )
    return Unet(input_shape[0], classes, 16)
