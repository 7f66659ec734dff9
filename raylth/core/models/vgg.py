"""VGG-11 for small images as in REPAIR (Jordan et al. 2023): no batch norm, one linear layer after the last pool."""

from torch import Tensor, nn

from raylth.core.models.base import FIXED_SHARE, KAPPA, MODELS, channels, he_initialise, with_symmetry

__all__ = ["VGG11", "vgg11"]

LAYERS: tuple[int | None, ...] = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)  # None: pool
NUM_POOLS = LAYERS.count(None)


class VGG11(nn.Module):
    """Eight 3x3 convolutions with bias and ReLU, five 2x2 max pools, one linear layer."""

    def __init__(self, width: float, num_classes: int, in_shape: tuple[int, int, int]) -> None:
        super().__init__()
        in_channels, height, wide = in_shape
        layers: list[nn.Module] = []
        for base in LAYERS:
            if base is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(in_channels, channels(base, width), 3, padding=1), nn.ReLU(inplace=True)]
            in_channels = channels(base, width)
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        scale = 2**NUM_POOLS
        self.head = nn.Linear(in_channels * (height // scale) * (wide // scale), num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) images to (B, num_classes) logits."""
        x = self.features(x)  # (B, 512w, H/32, W/32)
        return self.head(self.flatten(x))


@MODELS.register("vgg11")
def vgg11(
    *,
    width: float,
    num_classes: int,
    in_shape: tuple[int, ...],
    asymmetric: bool = False,
    fixed: float = FIXED_SHARE,
    kappa: float = KAPPA,
) -> VGG11:
    """Build VGG-11 with every channel count times w; `asymmetric`, with fixed entries, as `with_symmetry` says.

    ValueError for images smaller than 32x32.
    """
    if len(in_shape) != 3 or min(in_shape[1:]) < 2**NUM_POOLS:
        raise ValueError(f"vgg11 needs images of at least (C, 32, 32), not {in_shape}")
    network = VGG11(width, num_classes, (in_shape[0], in_shape[1], in_shape[2]))
    return with_symmetry(network, asymmetric=asymmetric, fixed=fixed, kappa=kappa)
