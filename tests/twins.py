"""The two main networks as modules of PyTorch, with the keys of the published weights.

Written by hand from the tables of layers, not from plans, so that a plan that is wrong, or a key
style that is, gives other numbers.
"""

from __future__ import annotations

import torch
from torch import nn


def _unit(channels: int, filters: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, filters, kernel, stride, kernel // 2),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
    )


class Bottleneck(nn.Module):
    """Three convolutions beside an always projected shortcut; nothing after the sum."""

    def __init__(self, channels: int, width: int, down: bool) -> None:
        super().__init__()
        stride = 2 if down else 1
        self.layer = nn.Sequential(
            _unit(channels, width, 1, stride), _unit(width, width, 3), _unit(width, 4 * width, 1)
        )
        shortcut = _unit(channels, 4 * width, 1, stride)
        if down:
            self.downsize = shortcut
        else:
            self.make_equal_channel = shortcut
        self.down = down

    def forward(self, x):
        return self.layer(x) + (self.downsize if self.down else self.make_equal_channel)(x)


class ResNet50(nn.Module):
    """For 32×32 images; the last block of the second and third part downsamples."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(*_unit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.layer2 = self._part(64, 64, 3, down=True)
        self.layer3 = self._part(256, 128, 4, down=True)
        self.layer4 = self._part(512, 256, 6, down=False)
        self.fc = nn.Linear(1024, classes)
        self.avgpool = nn.AvgPool2d(2)

    @staticmethod
    def _part(channels: int, width: int, blocks: int, down: bool) -> nn.Sequential:
        return nn.Sequential(
            *(Bottleneck(4 * width if i else channels, width, down and i == blocks - 1)
              for i in range(blocks))
        )  # fmt: skip

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG16(nn.Module):
    """Thirteen convolutions without norms, and a head with one norm; for images of `side`."""

    def __init__(self, classes: int = 10, side: int = 32) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = 3
        for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeats):
                parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(512 * (side // 32) ** 2, 512), nn.BatchNorm1d(512), nn.ReLU(),
            nn.Dropout(), nn.Linear(512, classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


def with_random_statistics(model: nn.Module, seed: int) -> nn.Module:
    """Give a model's norms random parameters and statistics, and set it to inference."""
    torch.manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            part.num_batches_tracked.fill_(int(torch.randint(1, 10**6, ())))
    return model.eval()
