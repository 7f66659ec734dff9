"""Tables as people read them on a page: headings with units, one number of decimals per column, thousands apart."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import pandas as pd

__all__ = ["View", "as_view", "decimals"]

MOST_DECIMALS = 3
NUMBER = re.compile(r"[+\-<]?\s?\d")


@dataclass(frozen=True)
class Column:
    """How a column is headed, and how many decimals its numbers have."""

    heading: str
    digits: int | None = None  # None: as many as its values need
    least: int = 0


@dataclass(frozen=True)
class View:
    """A table as text: headings, whether each column is of numbers, and rows."""

    headings: list[str]
    are_numbers: list[bool]
    rows: list[list[str]]

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Each heading, and whether numbers are below it."""
        return list(zip(self.headings, self.are_numbers, strict=True))


COLUMNS = {  # "table.column" where one name means two things
    "width": Column("width"),
    "sparsity": Column("sparsity", least=2),
    "rewind_epoch": Column("rewind point k (epochs)"),
    "rewind k": Column("rewind point k (epochs)"),
    "label": Column("arm"),
    "against": Column("compared with"),
    "contrast": Column("contrast"),
    "difference": Column("difference, points (95 % interval)"),
    "paper.difference": Column("difference (points)", 1),
    "paper_ensembles.difference": Column("difference", 3),
    "n": Column("replicates (n)"),
    "cells": Column("cells averaged"),
    "cells_all": Column("cells in all"),
    "p": Column("p"),
    "p_holm": Column("p, Holm-corrected"),
    "smallest": Column("smallest detectable effect (points)", 1),
    "lost": Column("networks lost"),
    "design": Column("comparison"),
    "share (%)": Column("share, % (95 % interval)"),
    "accuracy": Column("test accuracy (%)", 1),
    "search.accuracy": Column("accuracy on held-out samples (%)", 1),
    "search.edges": Column("settings at an end of their range"),
    "search.epochs": Column("epochs trained"),
    "search.repeat": Column("search no."),
    "search.stopped": Column("trials stopped early"),
    "search.study": Column("arm"),
    "model_sparsity": Column("sparsity of the model", 3),
    "A": Column("dense A (epochs)"),
    "IMP": Column("IMP (epochs)"),
    "B": Column("dense B (epochs)"),
    "match": Column("match (passes)", 2),
    "own": Column("own training (epochs)"),
    "total": Column("total (epochs)", 1),
    "match_method": Column("matched by"),
    "mask_finder": Column("mask found by"),
    "match_epoch": Column("matched at epoch"),
    "match_samples": Column("samples matched on"),
    "imp_round": Column("IMP round"),
    "between": Column("between"),
    "error_barrier": Column("error barrier, points (95 % interval)"),
    "error_mid": Column("error at the middle, points (95 % interval)"),
    "loss_barrier": Column("loss barrier, nats (95 % interval)"),
    "loss_mid": Column("loss at the middle, nats (95 % interval)"),
    "scaled_loss_barrier": Column("loss barrier at fitted temperatures, nats (95 % interval)"),
    "scaled_loss_mid": Column("loss at the middle at fitted temperatures, nats (95 % interval)"),
    "mean": Column("mean (%)", 1),
    "std": Column("standard deviation (points)", 1),
    "table": Column("paper's table"),
    "paper_mean": Column("paper's mean (%)", 2),
    "paper_std": Column("paper's standard deviation (points)", 2),
    "ours": Column("ours", 3),
    "low": Column("95 % interval, lower", 3),
    "high": Column("95 % interval, upper", 3),
    "paper": Column("paper", 3),
    "mean_accuracy": Column("members' mean accuracy, % (95 % interval)"),
    "ensemble_accuracy": Column("ensemble's accuracy, % (95 % interval)"),
    "gain": Column("gain, points (95 % interval)"),
    "disagreement": Column("disagreement, share (95 % interval)"),
    "kl": Column("KL, nats (95 % interval)"),
    "js": Column("JS, nats (95 % interval)"),
    "mean_nll": Column("members' mean NLL (nats)", 3),
    "ensemble_nll": Column("ensemble's NLL (nats)", 3),
    "mean_calibration_error": Column("members' mean calibration error", 3),
    "ensemble_calibration_error": Column("ensemble's calibration error", 3),
    "jaccard": Column("overlap (Jaccard)", 3),
    "expected_jaccard": Column("overlap by chance", 3),
    "density": Column("density of the first mask", 3),
    "pruned_units": Column("pruned units of the first mask", 1),
    "other": Column("compared with"),
    "mask": Column("mask"),
    "unit_group": Column("symmetry group"),
    "correlation": Column("mean correlation", 3),
    "fixed_share": Column("share of units in place", 3),
}  # fmt: skip
MEASURES = {"mean_accuracy": "members' mean accuracy (%)", "ensemble_accuracy": "ensemble's accuracy (%)",
            "disagreement": "disagreement (share)", "kl": "KL (nats)", "js": "JS (nats)"}  # fmt: skip


def as_view(frame: pd.DataFrame, table: str = "") -> View:
    """Return a data frame as the table of that name shows it: without columns that are empty, missing values are ""."""
    frame = frame.loc[:, frame.notna().any() | (len(frame) == 0)]
    columns = [_column(table, str(name)) for name in frame]
    texts = [_texts(frame[name].tolist(), column) for name, column in zip(frame, columns, strict=True)]
    are_numbers = [all(not text or NUMBER.match(text) for text in column) for column in texts]
    rows = [list(row) for row in zip(*texts, strict=True)]
    return View([column.heading for column in columns], are_numbers, rows)


def _column(table: str, name: str) -> Column:
    return COLUMNS.get(f"{table}.{name}") or COLUMNS.get(name) or Column(name.replace("_", " "))


def _texts(values: Sequence[Any], column: Column) -> list[str]:
    known = [value for value in values if not pd.isna(value)]
    if not known or not all(isinstance(value, Real) and not isinstance(value, bool) for value in known):
        return ["" if pd.isna(value) else MEASURES.get(str(value), str(value)) for value in values]
    digits = column.digits
    if digits is None:
        digits = decimals(known, column.least if any(value % 1 for value in known) else 0)
    if all(isinstance(value, Integral) for value in known):
        digits = 0
    return ["" if pd.isna(value) else f"{float(value):z,.{digits}f}" for value in values]


def decimals(values: Iterable[float], least: int = 0, most: int = MOST_DECIMALS) -> int:
    """Return how many decimals the values of a column have: as many as any of them needs."""
    needed = (f"{value:.{most}f}".rstrip("0").partition(".")[2] for value in values)
    return max([least, *map(len, needed)])
