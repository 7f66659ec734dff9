"""ResNet-50 of any width: torchvision's, every channel times w."""

import torch
from torch import nn

from raylth.core.models.base import MODELS, channels, he_initialise

__all__ = ["resnet50", "widen"]

MIN_SIDE = 32  # pixels; the network halves five times


def widen(network: nn.Module, width: float, in_channels: int = 3) -> None:
    """Multiply every channel of a network of convolutions, batch norms and linear layers by `width`, in place.

    What enters the network (`in_channels`) and what leaves its last linear layer stay as they are; values are not kept.
    Raises ValueError for a width that gives no whole numbers, and for other layers with weights.
    """
    heads = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            grouped = channels(module.groups, width) if module.groups > 1 else 1
            new: nn.Module = nn.Conv2d(
                in_channels if module.in_channels == in_channels else channels(module.in_channels, width),
                channels(module.out_channels, width),
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                grouped,
                bias=module.bias is not None,
            )
        elif isinstance(module, nn.BatchNorm2d):
            new = nn.BatchNorm2d(channels(module.num_features, width), module.eps, module.momentum)
        elif isinstance(module, nn.Linear):
            leaves = module.out_features if name in heads else channels(module.out_features, width)
            new = nn.Linear(channels(module.in_features, width), leaves, bias=module.bias is not None)
        elif list(module.parameters(recurse=False)):
            raise ValueError(f"{name}: a {type(module).__name__} cannot be widened")
        else:
            continue
        network.set_submodule(name, new)


@MODELS.register("resnet50")
def resnet50(*, width: float, num_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """Build torchvision's ResNet-50 with every channel times `width`, He-initialised like the package's other networks."""
    from torchvision.models import resnet50 as build  # imports torch's compiler: only when it is asked for

    if len(in_shape) != 3 or in_shape[0] != 3 or min(in_shape[1:]) < MIN_SIDE:
        raise ValueError(f"resnet50 takes (3, H, W) images of {MIN_SIDE} pixels or more, not {tuple(in_shape)}")
    with torch.device("meta"):  # for its structure
        network: nn.Module = build(num_classes=num_classes)
    widen(network, width)
    he_initialise(network)
    return network
