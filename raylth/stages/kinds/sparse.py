"""Stage `sparse`: one arm at one rewind point and one sparsity -> a trained sparse network.

The arms are a table (`raylth.arms`): whose weights, and what happens to A's mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from raylth.arms import ARMS
from raylth.core.masks import Mask, shuffle_mask
from raylth.core.permutation import Permutation, PermutationSpec, derive_spec, random_permutation
from raylth.stages.context import Context
from raylth.stages.endpoints import load_permutation
from raylth.stages.stage import Stage
from raylth.stages.training import Trainee, load_mask, load_network, masked_trainee

__all__ = ["Given", "sparse"]


@dataclass(frozen=True)
class Given:
    """What a transform of a mask may read: the network that it will be trained with, and what its arm asks for."""

    network: nn.Module  # with its weights at the rewind point; not to be changed
    spec: Callable[[], PermutationSpec]  # derives the network's symmetry
    permutation: Callable[[], Permutation]  # loads pi, from A to B, where the arm says `needs_match`
    seed: int  # for random numbers, where the arm says `needs_seed`


def sparse(stage: Stage, context: Context) -> Trainee:
    """Train the arm's weights under the arm's mask."""
    network = load_network(stage.settings, context, stage.parents["weights"])
    given = Given(
        network,
        spec=lambda: derive_spec(network, context.train.probe(2)),
        permutation=lambda: load_permutation(stage, context, network),
        seed=stage.settings["mask_transform"].get("seed", 0),
    )
    mask = load_mask(context, stage.parents["mask"])
    name = stage.settings["mask_transform"]["name"]
    changed = TRANSFORMS[name](mask, given) if name in TRANSFORMS else _by_ones_own(name, mask, given)
    return masked_trainee(stage, network, changed)


def _as_it_is(mask: Mask, given: Given) -> Mask:
    return mask


def _shuffle(mask: Mask, given: Given) -> Mask:
    return shuffle_mask(mask, given.seed)


def _permute(mask: Mask, given: Given) -> Mask:
    return _moved(mask, given.permutation())


def _permute_randomly(mask: Mask, given: Given) -> Mask:
    return _moved(mask, random_permutation(given.spec(), given.seed))


TRANSFORMS: Mapping[str, Callable[[Mask, Given], Mask]] = {
    "none": _as_it_is,
    "permute": _permute,
    "shuffle": _shuffle,
    "random_permutation": _permute_randomly,
}


def _moved(mask: Mask, permutation: Permutation) -> Mask:
    moved = permutation.apply_mask(mask)
    for name, alive in mask.items():
        if int(moved[name].sum()) != int(alive.sum()):
            raise RuntimeError(f"{name}: pi(mask) keeps {int(moved[name].sum())} weights of {int(alive.sum())}")
    return moved


def _by_ones_own(name: str, mask: Mask, given: Given) -> Mask:
    """Call the transform of an arm of one's own; TypeError for what it returns that is no mask of this network."""
    transform = ARMS[name].transform
    assert callable(transform)
    found = transform({layer: alive.clone() for layer, alive in mask.items()}, given)
    if not isinstance(found, Mapping) or found.keys() != mask.keys():
        raise TypeError(f"arm {name}: expected a mask of the layers {', '.join(mask)}, found {_named(found)}")
    for layer, alive in mask.items():
        is_mask = isinstance(found[layer], torch.Tensor) and found[layer].dtype == torch.bool
        if not is_mask or found[layer].shape != alive.shape:
            raise TypeError(
                f"arm {name}: {layer}: expected a bool tensor of {tuple(alive.shape)}, found {_shown(found[layer])}"
            )
    return {layer: found[layer].to(alive.device) for layer, alive in mask.items()}


def _named(found: object) -> str:
    return ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__


def _shown(found: object) -> str:
    return f"{found.dtype} of {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
