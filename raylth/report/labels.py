"""What an arm is called in tables and figures, where a sweep has several of what its masks depend on."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from raylth.arms import short_name

__all__ = ["arm_labels", "readable", "short_names"]

TAKEN = ("dense", "width", "sparsity")  # other lines and columns beside those of arms
AXES: dict[str, Callable[[Any], str]] = {
    "mask_finder": str,
    "match_method": str,
    "match_epoch": lambda k: f"@{int(k)}",
}


def arm_labels(arms: pd.DataFrame) -> "pd.Series[str]":
    """Return the name of each row's arm, with finder, matching method and epoch where a sweep has several."""
    names = arms["arm"].astype(str)
    labels = names.map(short_names(names))
    for column, text in AXES.items():
        if column in arms and arms[column].nunique() > 1:
            values = arms[column].map(short_names(arms[column].dropna())) if column == "mask_finder" else arms[column]
            labels += [f" {text(value)}" if pd.notna(value) else "" for value in values]
    return labels


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return what each name is called beside the others: its short name, or all of it where that stands for something else.

    Two arms `one:arm` and `other:arm` keep their modules, as does `mine:dense`: each label is of one thing only.
    """
    found = {name: short_name(name) for name in names}
    counts = Counter([*found.values(), *TAKEN])
    return {name: short if counts[short] == 1 else name for name, short in found.items()}


def readable(text: str) -> str:
    """Return a text with networks as people read them: what is pi^-1(permuted) in tables is π⁻¹(permuted)."""
    return re.sub(r"\bpi(?=\()", "π", re.sub(r"\bpi\^-1(?=\()", "π⁻¹", text))
