"""The analysis `merge`: the networks of all replicates as one, averaged in weight space in one order of units.

Merging as in C2M3 (Crisostomi et al. 2024); REPAIR (Jordan et al. 2023) with the mean of all networks'
statistics as its target.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from raylth.analyses import Analysis, MeasureInputs
from raylth.config.across import AcrossConfig
from raylth.config.types import Count, unique
from raylth.core.batchnorm import reset_bn_stats
from raylth.core.ensemble import FLOOR
from raylth.core.interpolate import average
from raylth.core.repair import mean_statistics, repair_to, site_statistics
from raylth.core.training.schedule import even_batch_size

__all__ = ["MergeConfig", "measure_merge", "merge", "merge_figure", "merge_table"]

BATCH_SIZE = 500
COLUMNS = ("train_accuracy", "train_loss", "test_accuracy", "test_loss")
ORDER = {"members": 0, "ensemble": 1, "merged": 2, "merged, not permuted": 3}
Splits = Mapping[str, Any]


class MergeConfig(AcrossConfig):
    """The networks of all replicates as one: their weights' mean, beside the networks and their ensemble."""

    corrections: Annotated[list[Literal["plain", "reset", "repair"]], Field(min_length=1), AfterValidator(unique)] = Field(
        ["plain", "reset", "repair"],
        description="plain: the mean of the weights, nothing else; reset: batch norm's statistics re-estimated; repair: "
        "every layer's mean and standard deviation set to the mean of the networks' (Jordan et al. 2023).",
    )
    samples: Count | None = Field(
        2000, description="Training samples (classes in proportion) for corrections and training figures; null is all."
    )


def measure_merge(
    networks: Mapping[str, Sequence[nn.Module]], settings: MergeConfig, inputs: MeasureInputs
) -> Iterator[dict[str, Any]]:
    """Yield, for each named set of networks, accuracy (percent) and loss (nats) of its members (the mean), of their ensemble
    (the mean of their probabilities), and of their merged weights, permuted and not, by correction.

    `density` is the share of the weights of matrices and kernels that are not 0: a merged network has those of all members.
    """
    train = inputs.train.take(min(settings.samples or len(inputs.train), len(inputs.train)))
    splits = {"train": train, "test": inputs.test}
    for name, members in networks.items():
        own = {"network": name, "members": len(members)}
        found = [_probabilities(member, splits) for member in members]
        scores = [_scores(each, splits) for each in found]
        density = sum(map(_density, members)) / len(members)
        yield {**own, "what": "members", "correction": None, "density": density, **_mean(scores)}
        together = {split: torch.stack([each[split] for each in found]).mean(0) for split in splits}
        yield {**own, "what": "ensemble", "correction": None, "density": density, **_scores(together, splits)}
        states = [member.state_dict() for member in members]
        moved = [each.apply(state) for each, state in zip(inputs.permutations[name], states, strict=True)]
        for what, ends in (("merged", moved), ("merged, not permuted", states)):
            for correction in settings.corrections:
                merged = merged_network(members[0], ends, correction, train)
                row = {**own, "what": what, "correction": correction, "density": _density(merged)}
                yield {**row, **_scores(_probabilities(merged, splits), splits)}


def merged_network(like: nn.Module, states: Sequence[Mapping[str, Tensor]], correction: str, train: Any) -> nn.Module:
    """Return a network with the mean of the states, corrected on the samples of `train`; `like` is built as it is."""
    merged = copy.deepcopy(like)
    merged.load_state_dict(average(states))
    if correction == "reset":
        reset_bn_stats(merged, _inputs(train))
    elif correction == "repair":
        end, statistics = copy.deepcopy(like), []
        for state in states:
            end.load_state_dict(state)
            statistics.append(site_statistics(end, _inputs(train)))
        repair_to(merged, mean_statistics(statistics), _inputs(train))
    return merged


def _inputs(split: Any) -> Iterator[Tensor]:
    return (x for x, _ in split.batches(even_batch_size(len(split), BATCH_SIZE)))


@torch.no_grad()
def _probabilities(network: nn.Module, splits: Splits) -> dict[str, Tensor]:
    """Return the predicted probabilities on each split, (samples, classes) float64."""
    return {
        name: torch.cat([network(x).double().softmax(1) for x, _ in split.batches(BATCH_SIZE)])
        for name, split in splits.items()
    }


def _scores(probabilities: Mapping[str, Tensor], splits: Splits) -> dict[str, float]:
    found = {}
    for name, split in splits.items():
        predicted, labels = probabilities[name], split.y
        found[f"{name}_accuracy"] = float(100 * (predicted.argmax(1) == labels).double().mean())
        found[f"{name}_loss"] = float(-predicted.gather(1, labels[:, None]).clamp_min(FLOOR).log().mean())
    return found


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {column: sum(each[column] for each in scores) / len(scores) for column in COLUMNS}


def _density(network: nn.Module) -> float:
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    return float(sum(int(weight.count_nonzero()) for weight in weights) / max(1, sum(weight.numel() for weight in weights)))


def merge_table(frame: Any) -> Any:
    """Return the rows as they were measured: a network, what was made of it, and its figures."""
    cell = [column for column in ("width", "sparsity", "rewind_epoch") if column in frame]
    own = ["network", "members", "what", *(["correction"] if "correction" in frame else []), "density", *COLUMNS]
    return frame[[*cell, *own]].astype({"members": int}).reset_index(drop=True)


def merge_figure(frame: Any, title: str) -> Any:
    """Draw test accuracy: by network, the members, their ensemble, and what is merged, with the last of the corrections."""
    from matplotlib.figure import Figure

    correction = frame["correction"].dropna().iloc[-1]
    shown = frame[frame["correction"].isna() | (frame["correction"] == correction)]
    widths = list(dict.fromkeys(shown["width"]))
    figure = Figure(figsize=(1.2 + 3.6 * len(widths), 3.4), layout="constrained")
    for axis, width in zip(figure.subplots(1, len(widths), sharey=True, squeeze=False)[0], widths, strict=True):
        part = shown[shown["width"] == width]
        names = list(dict.fromkeys(part["network"]))
        for what, place in ORDER.items():
            heights = [
                float(part[(part["network"] == name) & (part["what"] == what)]["test_accuracy"].mean()) for name in names
            ]
            positions = [number + 0.2 * (place - 1.5) for number in range(len(names))]
            label = what if place < 2 else f"{what} ({correction})"
            axis.bar(positions, heights, 0.19, label=label, color=f"C{place}")
        axis.set_xticks(range(len(names)), names)
        axis.set_title(f"width {width:g}", fontsize=9)
        axis.set_ylabel("test accuracy (%)")
    figure.suptitle(title, fontsize=9)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, ncols=2, loc="outside lower center")
    return figure


merge = Analysis(
    measure=measure_merge,
    settings=MergeConfig,
    summary="Accuracy (percent) and loss (nats) of the networks of all replicates, of their ensemble, and of one network "
    "with the mean of their weights, in one order of units (permuted) and each in its own.",
    table=merge_table,
    figure=merge_figure,
    across_replicates=True,
)
