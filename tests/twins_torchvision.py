"""ResNet-18, ResNet-50 and VGG16-BN in PyTorch, with the names that torchvision's weights have.

Written from the papers and from the layout of the published weights: He et al. 2015, table 1 and
figure 5, with the stride of a bottleneck in its 3×3 convolution (Goyal et al. 2017, section 5.1);
Simonyan & Zisserman 2015, table 1, D, with batch normalisation after each convolution.

A module's place in the tree is its name in a state dict, so the trees are torchvision's:
`layer1.0.conv1.weight`, `layer2.0.downsample.1.running_var`, `features.0.weight`,
`classifier.6.bias`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn


def conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without a bias, which the normalisation after it would take away."""
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


class Residual(nn.Module):
    """A block of convolutions, each normalised, with the sum before the last activation.

    Args:
        before: channels of the input.
        shape: kernel and filters of each convolution.
        strided: which convolution strides.
        stride: of that one, and of the shortcut.
    """

    def __init__(
        self, before: int, shape: list[tuple[int, int]], strided: int, stride: int
    ) -> None:
        super().__init__()
        self.number = len(shape)
        channels = before
        for i, (kernel, filters) in enumerate(shape):
            step = stride if i == strided else 1
            self.add_module(f"conv{i + 1}", conv(channels, filters, kernel, step))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(filters))
            channels = filters
        if stride > 1 or before != channels:
            projected = conv(before, channels, 1, stride), nn.BatchNorm2d(channels)
            self.downsample = nn.Sequential(*projected)

    def forward(self, x: Any) -> Any:
        """Return max(0, branch + shortcut)."""
        y = x
        for i in range(1, self.number + 1):
            y = torch.relu(y) if i > 1 else y
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(nn.Module):
    """A residual network.

    Args:
        depths: blocks in each of four stages of width 64, 128, 256 and 512.
        bottleneck: 1×1, 3×3 and a four times wider 1×1, instead of two 3×3.
        classes: outputs.
    """

    def __init__(self, depths: tuple[int, ...], bottleneck: bool, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for i, depth in enumerate(depths):
            width, blocks = 64 * 2**i, []
            for j in range(depth):
                shape = [(1, width), (3, width), (1, 4 * width)] if bottleneck else [(3, width)] * 2
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Residual(channels, shape, 1 if bottleneck else 0, stride))
                channels = shape[-1][1]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        """Return logits (batch, classes) of images (batch, 3, height, width)."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


def resnet18(classes: int) -> ResNet:
    """Two blocks of two 3×3 convolutions in each stage."""
    return ResNet((2, 2, 2, 2), bottleneck=False, classes=classes)


def resnet50(classes: int) -> ResNet:
    """3, 4, 6 and 3 bottlenecks."""
    return ResNet((3, 4, 6, 3), bottleneck=True, classes=classes)


class Vgg16Bn(nn.Module):
    """Thirteen 3×3 convolutions in five groups, then three dense layers.

    Args:
        sides: height and width, multiples of 32; torchvision's weights are for 224×224.
        classes: outputs.
        hidden: units of the two hidden dense layers, 4096 in the paper.
    """

    def __init__(self, sides: tuple[int, int], classes: int, hidden: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for number, filters in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(number):
                layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters)]
                layers += [nn.ReLU()]
                channels = filters
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        # The numbers between are activations and dropout, which have no weights.
        dense = {
            "0": nn.Linear(channels * (sides[0] // 32) * (sides[1] // 32), hidden),
            "3": nn.Linear(hidden, hidden),
            "6": nn.Linear(hidden, classes),
        }
        self.classifier = nn.Sequential(OrderedDict(dense))

    def forward(self, x: Any) -> Any:
        """Return logits (batch, classes) of images (batch, 3, height, width)."""
        x = self.features(x).flatten(1)
        for name, layer in self.classifier.named_children():
            x = layer(torch.relu(x) if name != "0" else x)
        return x


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw weights and statistics under which values stay of the order of one."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim > 1:
                value.normal_(0, value[0].numel() ** -0.5, generator=numbers)
            elif "running_var" in name or ("weight" in name and value.ndim == 1):
                value.uniform_(0.5, 1.5, generator=numbers)
            elif value.ndim == 1:
                value.normal_(0, 0.2, generator=numbers)
