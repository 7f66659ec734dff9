"""The paper's numbers beside ours, where a sweep has a cell of the paper."""

import importlib.resources

import pandas as pd

from raylth.report.tables import CELL, accuracy_table, dense_networks, finished_arms

__all__ = ["beside_paper", "ensembles_beside_paper", "paper_accuracy", "paper_ensembles"]

MATCHED_LATE = {"cifar10": 200, "cifar100": 200, "imagenet": 80}  # T, and the match epoch of all tables but 15


def paper_accuracy() -> pd.DataFrame:
    """Return Tables 5 to 15 of arXiv 2505.05143: one row per cell and arm; accuracies in percent over 3 runs."""
    return _read("paper_accuracy.csv").rename(columns={"method": "arm"})


def paper_ensembles() -> pd.DataFrame:
    """Return Table 1: one row per set; accuracies in percent, disagreement as a share, KL and JS in nats."""
    return _read("paper_ensembles.csv").rename(columns={"method": "set"})


def _read(name: str) -> pd.DataFrame:
    with (importlib.resources.files("raylth.report") / "data" / name).open(encoding="utf-8") as text:
        return pd.read_csv(text)


def beside_paper(results: pd.DataFrame) -> pd.DataFrame:
    """Return our cells that the paper has, too, with its `table`, `paper_mean`, `paper_std`, and our `difference` in points.

    A cell is the paper's when data set, network, width, sparsity, arm, rewind point, matching epoch and the number of dense
    epochs are, and units were matched by activations; accuracy is top-1. Empty when there is none.
    """
    arms = finished_arms(results)
    columns = [*CELL, "label", "match_epoch", "mean", "std", "n", "table", "paper_mean", "paper_std", "difference"]
    late = _late(results)
    if arms.empty or late is None:
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


def ensembles_beside_paper(ensembles: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Return our ensembles that Table 1 has, too: a row per set and measure, with ours, the paper's and the difference.

    A set is the paper's when data set, network, width, sparsity, the number of members and of dense epochs are. Empty when
    there is none.
    """
    if _late(results) is None:
        ensembles = ensembles.head(0)
    keys = ["dataset", "model", "width", "sparsity", "set", "members"]
    measures = {
        "mean_accuracy": "mean", "ensemble_accuracy": "ensemble", "disagreement": "disagreement", "kl": "kl", "js": "js",
    }  # fmt: skip
    ours = ensembles.rename(columns={"arm": "set"})[[*keys, *measures]].melt(keys, var_name="measure", value_name="ours")
    paper = paper_ensembles().rename(columns={theirs: name for name, theirs in measures.items()})[[*keys, *measures]]
    paper["width"] = paper["width"].astype(float)
    joined = ours.merge(paper.melt(keys, var_name="measure", value_name="paper"), on=[*keys, "measure"])
    return joined.assign(difference=joined["ours"] - joined["paper"])
