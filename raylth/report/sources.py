"""The paper's numbers and recipe, as the package carries them."""

import functools
import importlib.resources
from importlib.resources.abc import Traversable
from typing import Any

import pandas as pd
import yaml

__all__ = ["paper_accuracy", "paper_ensembles", "paper_recipe"]


def paper_accuracy() -> pd.DataFrame:
    """Return Tables 5 to 15 of arXiv 2505.05143: one row per cell and arm; accuracies in percent over 3 runs."""
    with _file("paper_accuracy.csv").open(encoding="utf-8") as text:
        return pd.read_csv(text).rename(columns={"method": "arm"})


def paper_ensembles() -> pd.DataFrame:
    """Return Table 1: one row per set; accuracies in percent, disagreement as a share, KL and JS as the paper has them.

    The paper does not say their scale. For JS as half the sum of two divergences and KL as the mean of both directions KL is
    at least 4 JS; all the table's rows lie between 2.7 and 3.5, so that its JS is another one.
    """
    with _file("paper_ensembles.csv").open(encoding="utf-8") as text:
        return pd.read_csv(text).rename(columns={"method": "set"})


@functools.cache
def paper_recipe() -> dict[str, Any]:
    """Return the recipe behind the paper's tables, setting by setting; the file says what its fields are."""
    found: dict[str, Any] = yaml.safe_load(_file("paper_recipe.yaml").read_bytes())
    return found


def _file(name: str) -> Traversable:
    return importlib.resources.files("raylth.report") / "data" / name
