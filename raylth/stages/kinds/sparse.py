"""Stage `sparse`: one arm at one rewind point and one sparsity -> a trained sparse network.

The arms are a table (`raylth.arms`): whose weights, what happens to A's mask, and whose signs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raylth.arms import ARMS
from raylth.core.masks import Mask, as_mask, num_alive, shuffle_mask, with_signs
from raylth.core.models import check_code
from raylth.core.permutation import Permutation, PermutationSpec, random_permutation
from raylth.core.pruning import UNSTRUCTURED, Structure, keeps, shuffle_structured
from raylth.core.state import load_tensors
from raylth.stages.arrays import to_torch
from raylth.stages.context import Context
from raylth.stages.endpoints import load_permutation
from raylth.stages.kind import Finished, Rows, StageKind
from raylth.stages.lineage import lineage
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import OwnTransformSettings, SparseSettings, TransformSettings
from raylth.stages.stage import Stage
from raylth.stages.symmetry import structure_units, symmetry_of
from raylth.stages.training import Trainee, load_mask, load_network, masked_trainee

__all__ = ["KIND", "Given", "sparse"]


@dataclass(frozen=True)
class Given:
    """What a transform of a mask may read: the network that it will be trained with, and what its arm asks for."""

    network: nn.Module  # with its weights at the rewind point; not to be changed
    spec: Callable[[], PermutationSpec]  # derives the network's symmetry, as far as it keeps the mask's pattern
    permutation: Callable[[], Permutation]  # loads pi, from A to B, where the arm says `needs_match`
    seed: int  # for random numbers, where the arm says `needs_seed`
    structure: Structure = UNSTRUCTURED  # the pattern that the mask has, and is to keep


def sparse(stage: Stage[SparseSettings], context: Context) -> Trainee:
    """Train the arm's weights, with A's signs where it takes them, under the arm's mask."""
    structure = stage.settings.structure
    network = load_network(stage.settings.model, context, stage.parents["weights"])
    given = Given(
        network,
        spec=lambda: symmetry_of(stage.settings.model, network, context, structure),
        permutation=lambda: load_permutation(stage, context, network),
        seed=stage.settings.mask_transform.seed or 0,
        structure=structure.structure if structure else UNSTRUCTURED,
    )
    found = load_mask(context, stage.parents["mask"])
    mask = _transformed(stage.settings.mask_transform, found, given)
    if structure is not None:
        units = structure_units(stage.settings.model, network, context, structure)
        if (violation := keeps(mask, structure.structure, units)) is not None:
            name = stage.settings.mask_transform.name
            raise ValueError(f"the transform {name!r} breaks the mask's structure: {violation}")
    if stage.settings.signs == "A":
        signs = _moved_signs(stage, to_torch(context.load(stage.parents["signs"], "weights"), context.device), found, given)
        load_tensors(network, with_signs(network.state_dict(), mask, signs))
    return masked_trainee(stage, network, mask)


def _transformed(settings: TransformSettings, mask: Mask, given: Given) -> Mask:
    if isinstance(settings, OwnTransformSettings):  # whose arm may have the name of one of the package's transforms
        return _by_ones_own(settings, mask, given)
    return TRANSFORMS[settings.name](mask, given)


def _as_it_is(mask: Mask, given: Given) -> Mask:
    return mask


def _shuffle(mask: Mask, given: Given) -> Mask:
    if given.structure.pattern == "units":
        return _permute_randomly(mask, given)
    if given.structure.pattern != "unstructured":
        return shuffle_structured(mask, given.structure, given.seed)
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


def _moved_signs(stage: Stage[SparseSettings], weights: dict[str, Tensor], mask: Mask, given: Given) -> Mapping[str, Tensor]:
    """Return tensors with the signs of `weights`, moved as the arm moves its mask; pi alone moves a shuffled mask's."""
    transform = stage.settings.mask_transform
    if isinstance(transform, OwnTransformSettings):
        return _signs_by_ones_own(transform, weights, mask, given)
    if transform.name == "random_permutation":
        return random_permutation(given.spec(), given.seed).apply(weights)
    is_permuted = transform.name == "permute" or (transform.name == "shuffle" and "permutation" in stage.parents)
    return given.permutation().apply(weights) if is_permuted else weights


def _signs_by_ones_own(
    settings: OwnTransformSettings, weights: dict[str, Tensor], mask: Mask, given: Given
) -> dict[str, Tensor]:
    """Move the mask's positive and negative entries each as the mask; ValueError for a transform that moves no entries."""
    parts = [{name: alive & (sign * weights[name] > 0) for name, alive in mask.items()} for sign in (1, -1)]
    whole, positive, negative = (_by_ones_own(settings, part, given) for part in (mask, *parts))
    counts = [num_alive(part) for part in parts]
    is_moved = [num_alive(positive), num_alive(negative)] == counts and all(
        not (positive[name] & negative[name]).any() and not ((positive[name] | negative[name]) & ~alive).any()
        for name, alive in whole.items()
    )
    if not is_moved:
        raise ValueError(
            f"arm {settings.name}: signs='A' needs a transform that moves each entry of a mask whatever the others are, and "
            "this one does not: signs cannot be moved with it"
        )
    return {name: positive[name].to(torch.int8) - negative[name].to(torch.int8) for name in mask}


def _by_ones_own(settings: OwnTransformSettings, mask: Mask, given: Given) -> Mask:
    """Call the transform of an arm of one's own; TypeError for what it returns that is no mask of this network."""
    transform = ARMS[settings.name].transform
    if not callable(transform):
        raise RuntimeError(f"arm {settings.name!r} is not the same code here as where the sweep was planned")
    check_code("arm", settings.name, transform, settings.code)
    found = transform({layer: alive.clone() for layer, alive in mask.items()}, given)
    return as_mask(found, mask, f"arm {settings.name}")


def _rows(finished: Finished) -> Rows:
    rows = network_rows(finished)
    rows["results"][0] |= lineage(finished.stage, finished.graph)
    return rows


KIND = StageKind(
    name="sparse",
    settings=SparseSettings,
    rank=50,
    prepare=sparse,
    rows=_rows,
    num_bytes=lambda stage, network: network.weights + network.mask,
)
