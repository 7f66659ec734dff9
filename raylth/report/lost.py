"""Networks that a sweep lost: their training diverged or failed. They are named wherever their absence matters."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

__all__ = ["LOST", "NETWORKS", "UPSTREAM", "count_lost", "lost_networks", "lost_note"]

LOST = ("diverged", "failed")
UPSTREAM = ("dense", "dynamic", "imp", "find", "mask")  # stages that make what arms are trained from
NETWORKS = (*UPSTREAM, "sparse")
MOST_NAMED = 4
IDENTITY = (
    "stage",
    "width",
    "replicate",
    "network",
    "arm",
    "label",
    "sparsity",
    "imp_round",
    "rewind_epoch",
    "mask_finder",
    "member",
)


def lost_networks(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of networks that diverged or failed, each once; not those that another run of the store finished."""
    same = [column for column in (*IDENTITY, "match_epoch", "match_method") if column in networks]
    lost = networks[networks["status"].isin(LOST)].drop_duplicates("key", keep="last")
    if lost.empty:
        return lost
    done = set(_identities(networks[networks["status"] == "done"], same))
    return lost[[identity not in done for identity in _identities(lost, same)]]


def _identities(networks: pd.DataFrame, columns: list[str]) -> Iterable[tuple[Any, ...]]:
    values = (networks[column].astype(object).where(networks[column].notna(), None) for column in columns)
    return zip(*values, strict=True)


def lost_note(networks: pd.DataFrame, stages: Iterable[str] = NETWORKS, arms: Iterable[str] | None = None) -> str:
    """Say how many networks of these stages, and of these arms, a sweep lost, and which; "" for none."""
    lost = lost_networks(networks)
    lost = lost[lost["stage"].isin(list(stages))]
    if arms is not None:
        lost = lost[(lost["stage"] != "sparse") | lost["arm"].isin(list(arms))]
    return count_lost(lost)


def count_lost(lost: pd.DataFrame) -> str:
    """Say how many networks were lost, and name them by cell and replicate, of many the first; "" for none."""
    if lost.empty:
        return ""
    counts = lost["status"].value_counts()
    how = " and ".join(f"{counts[status]} that {status}" for status in LOST if status in counts)
    return f"without {how}: {_names(lost)}"


def _names(networks: pd.DataFrame) -> str:
    names = [_name(row) for row in networks.head(MOST_NAMED).to_dict("records")]
    more = len(networks) - len(names)
    return "; ".join(names) + (f" and {more} more" if more else "")


def _name(row: dict[Any, Any]) -> str:
    """Return for instance "naive at sparsity 0.9, k = 10, replicate 2 (diverged)"."""
    known = {name: value for name, value in row.items() if pd.notna(value)}
    parts = []
    if row["stage"] == "sparse":
        parts.append(f"{known.get('label', known.get('arm'))} at sparsity {known['sparsity']:g}, k = {known['rewind_epoch']}")
    elif row["stage"] == "imp":
        where = f"round {known['imp_round']}" if "imp_round" in known else f"sparsity {known.get('sparsity', 0):g}"
        parts.append(f"IMP's {where}")
    elif row["stage"] in ("dynamic", "find", "mask"):
        source = " from its file" if row["stage"] == "mask" else ""
        parts.append(f"{known.get('network', 'A')}'s mask{source} at sparsity {known.get('sparsity', 0):g}")
    else:
        parts.append(f"dense {known.get('network', 'network')}")
    if known.get("width", 1.0) != 1.0:
        parts.append(f"width {known['width']:g}")
    if "replicate" in known:
        parts.append(f"replicate {known['replicate']}")
    if "member" in known:
        parts.append(f"member {known['member']} of an ensemble")
    return f"{', '.join(parts)} ({row['status']})"
