"""Stage `sparse`: one arm at one rewind point and one sparsity -> a trained sparse network.

The arms are a table (`raylth.arms`): whose weights, and what happens to A's mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from raylth.arms import ARMS
from raylth.core.masks import Mask, as_mask, shuffle_mask
from raylth.core.models import check_code
from raylth.core.permutation import Permutation, PermutationSpec, random_permutation
from raylth.core.pruning import UNSTRUCTURED, Structure, keeps, shuffle_structured
from raylth.stages.context import Context
from raylth.stages.endpoints import load_permutation
from raylth.stages.kind import Finished, Rows, StageKind
from raylth.stages.lineage import lineage
from raylth.stages.network_rows import network_rows
from raylth.stages.settings import OwnTransformSettings, SparseSettings
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
    """Train the arm's weights under the arm's mask."""
    transform, structure = stage.settings.mask_transform, stage.settings.structure
    network = load_network(stage.settings.model, context, stage.parents["weights"])
    given = Given(
        network,
        spec=lambda: symmetry_of(stage.settings.model, network, context, structure),
        permutation=lambda: load_permutation(stage, context, network),
        seed=transform.seed or 0,
        structure=structure.structure if structure else UNSTRUCTURED,
    )
    mask = load_mask(context, stage.parents["mask"])
    if isinstance(transform, OwnTransformSettings):  # whose arm may have the name of one of the package's transforms
        found = _by_ones_own(transform, mask, given)
    else:
        found = TRANSFORMS[transform.name](mask, given)
    if structure is not None:
        units = structure_units(stage.settings.model, network, context, structure)
        if (violation := keeps(found, structure.structure, units)) is not None:
            raise ValueError(f"the transform {transform.name!r} breaks the mask's structure: {violation}")
    return masked_trainee(stage, network, found)


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
