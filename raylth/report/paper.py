"""The paper's numbers beside ours, where a sweep has a cell of the paper and was trained by the paper's recipe."""

from typing import Any

import pandas as pd

from raylth.report.recipe import recipe_of
from raylth.report.sources import paper_accuracy, paper_ensembles
from raylth.report.tables import CELL, accuracy_table, dense_networks, ensemble_table, finished_arms

__all__ = ["beside_paper", "ensembles_beside_paper"]

MATCHED_LATE = {"cifar10": 200, "cifar100": 200, "imagenet": 80}  # T, and the match epoch of all tables but 15
OTHER_SCALE = ("js",)  # whose unit in the paper is another one


def beside_paper(results: pd.DataFrame, manifest: dict[str, Any] | None = None, *, searched: bool = False) -> pd.DataFrame:
    """Return our cells that the paper has, too, with its `table`, `paper_mean`, `paper_std`, and our `difference` in points.

    A cell is the paper's when data set, network, width, sparsity, arm, rewind point, matching epoch and the number of dense
    epochs are, and units were matched by activations; accuracy is top-1. Empty when there is none, and when the run, by its
    `manifest` (`load_manifest`), differs from the paper's recipe in what moves accuracy (`recipe_of` says in what).
    """
    arms = finished_arms(results)
    columns = [*CELL, "label", "match_epoch", "mean", "std", "n", "lost"]
    columns += ["table", "paper_mean", "paper_std", "difference"]
    late = _late(results)
    if arms.empty or late is None or not recipe_of(manifest, searched=searched).is_the_papers:
        return pd.DataFrame(columns=columns)
    dataset, model = arms["dataset"].iloc[0], arms["model"].iloc[0]
    if "match_method" in arms:
        arms = arms[arms["match_method"].isna() | (arms["match_method"] == "activation")]
    ours = accuracy_table(results)
    epochs = arms.groupby([*CELL, "label"], observed=True)["match_epoch"].first().astype("Int64").fillna(late)
    ours = ours.merge(epochs.reset_index(), on=[*CELL, "label"])
    paper = paper_accuracy()
    paper = paper[(paper["dataset"] == dataset) & (paper["model"] == model) & (paper["metric"] == "top1")]
    paper = paper.rename(columns={"mean": "paper_mean", "std": "paper_std"})
    joined = ours.merge(paper, on=[*CELL, "arm", "match_epoch"])
    joined = joined.sort_values("table").drop_duplicates([*CELL, "label"])  # Table 15 repeats a cell of Table 5
    joined = joined.sort_values([*CELL, "label"])
    return joined.assign(difference=joined["mean"] - joined["paper_mean"])[columns]


def _late(results: pd.DataFrame) -> int | None:
    """Return T when all dense networks were trained as long as the paper's, else None."""
    dense = dense_networks(results)
    late = MATCHED_LATE.get(dense["dataset"].iloc[0]) if len(dense) else None
    return late if late is not None and set(dense["epochs"].dropna()) == {late} else None


def ensembles_beside_paper(
    ensembles: pd.DataFrame, results: pd.DataFrame, manifest: dict[str, Any] | None = None, *, searched: bool = False
) -> pd.DataFrame:
    """Return our ensembles that Table 1 has, too: a row per set and measure, with ours, the paper's and the difference.

    A set is the paper's when data set, network, width, sparsity, the number of members and of dense epochs are. Where there
    are several sets of a kind, ours is their mean, with its 95 % interval. JS has no difference: the paper's is on another
    scale. Empty when there is none, and as `beside_paper` says.
    """
    keys = ["dataset", "model", "width", "sparsity", "set", "members"]
    measures = {
        "mean_accuracy": "mean", "ensemble_accuracy": "ensemble", "disagreement": "disagreement", "kl": "kl", "js": "js",
    }  # fmt: skip
    columns = [*keys, "measure", "ours", "low", "high", "sets", "paper", "difference"]
    if _late(results) is None or ensembles.empty or not recipe_of(manifest, searched=searched).is_the_papers:
        return pd.DataFrame(columns=columns)
    kinds = ensemble_table(ensembles).assign(dataset=ensembles["dataset"].iloc[0], model=ensembles["model"].iloc[0])
    ours = pd.concat(
        [
            kinds[[*keys, "sets"]].assign(
                measure=name, ours=kinds[name], low=kinds[f"{name}_low"], high=kinds[f"{name}_high"]
            )
            for name in measures
        ]
    )
    paper = paper_ensembles().rename(columns={theirs: name for name, theirs in measures.items()})[[*keys, *measures]]
    paper["width"] = paper["width"].astype(float)
    joined = ours.merge(paper.melt(keys, var_name="measure", value_name="paper"), on=[*keys, "measure"])
    is_alike = ~joined["measure"].isin(OTHER_SCALE)
    return joined.assign(difference=(joined["ours"] - joined["paper"]).where(is_alike))[columns]
