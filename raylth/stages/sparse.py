"""Stage `sparse`: one arm at one rewind point and one sparsity -> a trained sparse network.

The arms are one function and a table: whose weights, and what happens to A's mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raylth.core.masks import Mask, shuffle_mask
from raylth.core.permutation import Permutation, derive_spec, random_permutation
from raylth.stages.context import Context
from raylth.stages.stage import Stage
from raylth.stages.training import Trainee, load_mask, load_network, masked_trainee

__all__ = ["ARMS", "Arm", "sparse"]


@dataclass(frozen=True)
class Arm:
    """Which network's weights an arm starts from, and how it turns mask_A into its own mask."""

    weights_from: str  # "A" or "B"
    transform: str  # "none", "permute", "shuffle" or "random_permutation"

    @property
    def seeded(self) -> bool:
        """Whether the transform draws random numbers."""
        return self.transform in ("shuffle", "random_permutation")


ARMS = {
    "lth": Arm("A", "none"),
    "naive": Arm("B", "none"),
    "permuted": Arm("B", "permute"),
    "random": Arm("B", "shuffle"),
    "random_permutation": Arm("B", "random_permutation"),
}


def sparse(stage: Stage, context: Context) -> Trainee:
    """Train the arm's weights under the arm's mask."""
    network = load_network(stage.settings, context, stage.parents["weights"])
    mask = _transform(load_mask(context, stage.parents["mask"]), network, stage, context)
    return masked_trainee(stage, network, mask)


def _transform(mask: Mask, network: nn.Module, stage: Stage, context: Context) -> Mask:
    transform: dict[str, Any] = stage.settings["mask_transform"]
    if transform["name"] == "none":
        return mask
    if transform["name"] == "shuffle":
        return shuffle_mask(mask, transform["seed"])
    spec = derive_spec(network, context.train.probe(2))
    if transform["name"] == "random_permutation":
        permutation = random_permutation(spec, transform["seed"])
    else:
        perms = context.load(stage.parents["permutation"], "permutation")
        permutation = Permutation(spec, {group: torch.tensor(perm) for group, perm in perms.items()})
    moved = permutation.apply_mask(mask)
    for name, alive in mask.items():
        if int(moved[name].sum()) != int(alive.sum()):
            raise RuntimeError(f"{name}: pi(mask) keeps {int(moved[name].sum())} weights of {int(alive.sum())}")
    return moved
