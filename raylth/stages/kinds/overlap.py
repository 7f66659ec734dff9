"""Stage `overlap`: A's mask, pi, and perhaps B's own mask -> what each layer keeps, and how alike the masks are."""

from itertools import combinations
from typing import Any

from torch import Tensor

from raylth.core.masks import jaccard, num_pruned_units
from raylth.stages.context import Context
from raylth.stages.endpoints import load_permutation
from raylth.stages.kind import StageKind
from raylth.stages.settings import OverlapSettings
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import load_mask, new_network

__all__ = ["KIND", "overlap"]

ALL = "all"  # layers together


def overlap(stage: Stage[OverlapSettings], context: Context) -> dict[str, Artefact]:
    """Measure A, pi(A) and, where it is a parent, B's mask: layer by layer and over all; every two of them together.

    B's mask is found by pruning B itself. Two masks that know nothing of each other overlap by what their densities say.
    """
    permutation = load_permutation(stage, context, new_network(stage.settings.model, 0, context.device))
    mask = load_mask(context, stage.parents["a"])
    masks = {"A": mask, "pi(A)": permutation.apply_mask(mask)}
    if "b" in stage.parents:
        masks["B"] = load_mask(context, stage.parents["b"])
    rows: list[dict[str, Any]] = []
    for layer in [*mask, ALL]:
        parts = {name: _part(found, layer) for name, found in masks.items()}
        for name, part in parts.items():
            alive, count = sum(int(t.sum()) for t in part), sum(t.numel() for t in part)
            rows.append(
                {
                    "mask": name,
                    "other": None,
                    "layer": layer,
                    "density": alive / count,
                    "pruned_units": sum(map(num_pruned_units, part)),
                    "units": sum(len(tensor) for tensor in part),
                }
            )
        for (name, one), (other_name, other) in combinations(parts.items(), 2):
            shared, expected = jaccard(one, other)
            rows.append({"mask": name, "other": other_name, "layer": layer, "jaccard": shared, "expected_jaccard": expected})
    return {stage.key: Artefact({}, {"layers": rows, "epochs": 0})}


def _part(mask: dict[str, Tensor], layer: str) -> list[Tensor]:
    return list(mask.values()) if layer == ALL else [mask[layer]]


KIND = StageKind(
    name="overlap",
    settings=OverlapSettings,
    rank=80,
    compute=overlap,
    rows=lambda finished: {"masks": list(finished.metrics.get("layers", []))},
)
