"""A multi-layer perceptron with three hidden layers."""

import math

import torch
from torch import Tensor, nn

from raylth.core.models.base import FIXED_SHARE, KAPPA, MODELS, channels, he_initialise, with_symmetry

__all__ = ["MLP", "mlp"]


class MLP(nn.Module):
    """Three hidden ReLU layers of `hidden` units between `in_features` inputs and `num_classes` logits."""

    def __init__(self, in_features: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) inputs to (B, num_classes) logits."""
        x = torch.flatten(x, 1)  # (B, in_features)
        x = torch.relu_(self.fc1(x))  # (B, hidden)
        x = torch.relu_(self.fc2(x))
        x = torch.relu_(self.fc3(x))
        return self.head(x)  # (B, num_classes)


@MODELS.register("mlp")
def mlp(
    *,
    width: float,
    num_classes: int,
    in_shape: tuple[int, ...],
    asymmetric: bool = False,
    fixed: float = FIXED_SHARE,
    kappa: float = KAPPA,
) -> MLP:
    """Build the MLP of three hidden layers of 128w units; `asymmetric`, with fixed entries, as `with_symmetry` says."""
    network = MLP(math.prod(in_shape), channels(128, width), num_classes)
    return with_symmetry(network, asymmetric=asymmetric, fixed=fixed, kappa=kappa)
