"""Tables with intervals as a page shows them: a value and its interval in one column."""

import pandas as pd

from raylth.report.tables import with_interval_text

__all__ = ["compact_barriers", "compact_contrasts", "compact_ensembles", "compact_shares", "with_units"]


def compact_barriers(table: pd.DataFrame) -> pd.DataFrame:
    """Return barriers for the page: a value and its interval in one column, without columns that say nothing."""
    labels = [name for name in table if not name.startswith(("error_", "loss_", "scaled_")) and name != "n"]
    labels = [name for name in labels if table[name].notna().any() and (name != "width" or table[name].nunique() > 1)]
    shown = table[labels].copy()
    for column, digits in (
        ("error_barrier", 1), ("error_mid", 1), ("loss_barrier", 3), ("loss_mid", 3), ("scaled_loss_barrier", 3),
        ("scaled_loss_mid", 3),
    ):  # fmt: skip
        if column in table and table[column].notna().any():
            is_signed = column.endswith("_mid")
            rows = table.to_dict("records")
            shown[column] = [with_interval_text(row, column, digits=digits, signed=is_signed) for row in rows]
    return shown.assign(n=table["n"])


def compact_ensembles(table: pd.DataFrame) -> pd.DataFrame:
    """Return ensembles for the page: a value and its interval in one column."""
    bounds = [name for name in table if name.endswith(("_low", "_high"))]
    shown = table.drop(columns=bounds).copy()
    for column in [name.removesuffix("_low") for name in bounds if name.endswith("_low")]:
        digits, is_signed = (1 if column.endswith("accuracy") or column == "gain" else 3), column == "gain"
        rows = table.to_dict("records")
        shown[column] = [with_interval_text(row, column, digits=digits, signed=is_signed) for row in rows]
    return shown


def compact_contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """Return contrasts for the page; what is alike in all rows (one width, paired, nothing lost) is left out."""
    rows = table.rename(columns={"low": "difference_low", "high": "difference_high"}).to_dict("records")
    shown = table.drop(columns=["label", "against", "low", "high"])
    shown["difference"] = [with_interval_text(row, "difference", signed=True) for row in rows]
    shown.insert(0, "contrast", table["label"] + " - " + table["against"])
    if "width" in shown and shown["width"].nunique() < 2:
        shown = shown.drop(columns="width")
    if (table["design"] == "paired").all():
        shown = shown.drop(columns="design")
    if not table["lost"].any():
        shown = shown.drop(columns="lost")
    for name in shown.columns.intersection(["p", "p_holm"]):
        shown[name] = shown[name].map(lambda p: "" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}")
    return shown


def compact_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return shares for the page, in percent; a width or label that is alike in all rows is left out."""
    percent = 100 * table[["share", "low", "high"]].set_axis(["share", "share_low", "share_high"], axis=1)
    alike = [name for name in ("width", "label") if table[name].nunique() < 2]
    shown = table.drop(columns=["low", "high", *alike])
    shown["share"] = [with_interval_text(row, "share", digits=0) for row in percent.to_dict("records")]
    return shown.rename(columns={"share": "share (%)"})


def with_units(table: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy table for the page: arms with their unit, in cells numbers alone."""
    arms = table.columns[table.columns.get_loc("rewind k") + 1 :]
    return table.rename(columns={name: f"{name} (%)" for name in arms})
