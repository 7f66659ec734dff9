"""What an arm is called in tables and figures, where a sweep has several of what its masks depend on."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from raylth.arms import short_name

__all__ = ["arm_labels", "readable"]

AXES: dict[str, Callable[[Any], str]] = {
    "mask_finder": short_name,
    "match_method": str,
    "match_epoch": lambda k: f"@{int(k)}",
}


def arm_labels(arms: pd.DataFrame) -> "pd.Series[str]":
    """Return the name of each row's arm, with finder, matching method and epoch where a sweep has several."""
    labels = arms["arm"].astype(str).map(short_name)
    for column, text in AXES.items():
        if column in arms and arms[column].nunique() > 1:
            labels += [f" {text(value)}" if pd.notna(value) else "" for value in arms[column]]
    return labels


def readable(text: str) -> str:
    """Return a text with networks as people read them: what is pi^-1(permuted) in tables is π⁻¹(permuted)."""
    return re.sub(r"\bpi(?=\()", "π", re.sub(r"\bpi\^-1(?=\()", "π⁻¹", text))
