"""The report of one run: `report.html`, one file that needs nothing else, with its figures and tables beside it."""

import base64
import importlib.resources
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from raylth.report.figures import accuracy_vs_rewind, accuracy_vs_sparsity, difference_plot
from raylth.report.findings import findings
from raylth.report.landscape import barrier_vs_width, imp_barriers, line_plot, plane_plot
from raylth.report.matching import mask_overlap, match_effort, match_quality
from raylth.report.paper import beside_paper, ensembles_beside_paper
from raylth.report.results import (
    load_barriers,
    load_ensembles,
    load_lines,
    load_masks,
    load_permutations,
    load_planes,
    load_results,
)
from raylth.report.statistics import paired_differences
from raylth.report.tables import (
    accuracy_table,
    barrier_table,
    ensemble_table,
    imp_barrier_table,
    line_table,
    overlap_table,
    wide_accuracy,
)
from raylth.store import Location
from raylth.store.tables import DATASETS

__all__ = ["write_report"]

SHOWN_FAILURES = 200


@dataclass(frozen=True)
class Shown:
    """A figure or a table as the page shows it."""

    name: str  # of its files
    title: str
    text: str  # what a reader must know of it
    html: str


@dataclass(frozen=True)
class Frames:
    """All that a run has written, as data frames; what it has nothing of is empty."""

    results: pd.DataFrame
    barriers: pd.DataFrame
    lines: pd.DataFrame
    planes: pd.DataFrame
    permutations: pd.DataFrame
    masks: pd.DataFrame
    ensembles: pd.DataFrame

    @classmethod
    def load(cls, run: Location) -> "Frames":
        """Load a run's datasets; a run of an older version may lack some, but not its results."""
        loaders = {
            "barriers": load_barriers, "lines": load_lines, "planes": load_planes, "permutations": load_permutations,
            "masks": load_masks, "ensembles": load_ensembles,
        }  # fmt: skip
        found = {}
        for name, load in loaders.items():
            try:
                found[name] = load(run)
            except FileNotFoundError:
                found[name] = pd.DataFrame()
            found[name] = found[name].reindex(columns=DATASETS[name].names)
        return cls(load_results(run), **found)


def write_report(run: Location, out: Location) -> Location:
    """Write a run's report to `out`: `report.html`, `figures/*.png` and `.svg`, `tables/*.csv` and `.tex`.

    `run` is its folder in a store, `<store>/runs/<run>`; the sweep may still be going on. Returns the page. Raises
    FileNotFoundError when the run has written nothing yet.
    """
    manifest, frames = _manifest(run), Frames.load(run)
    name = manifest["config"]["name"]
    figures, tables = _figures(frames, name, out), _tables(frames, out)
    counts = pd.DataFrame(manifest["stages"]).T.fillna(0).astype(int)
    done = int(counts.get("done", pd.Series(dtype=int)).sum())
    total = int(counts.to_numpy().sum())
    failures = frames.results[frames.results["status"] != "done"]
    page = _template().render(
        name=name,
        manifest=manifest,
        subtitle=", ".join([manifest["config"]["data"]["name"], manifest["config"]["model"]["name"]]),
        done=done,
        total=total,
        counts=counts.to_html(classes="numbers", border=0),
        findings=findings(frames.results, frames.barriers, frames.ensembles, frames.masks),
        figures=figures,
        tables=tables,
        failures=[_failure(row) for row in failures.head(SHOWN_FAILURES).to_dict("records")],
        num_failures=len(failures),
        settings=json.dumps(manifest["config"], indent=1),
        networks=len(frames.results),
    )
    (out / "report.html").write(page.encode())
    return out / "report.html"


def _manifest(run: Location) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / "manifest.json").read())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{run}: no manifest.json here, so no sweep has written anything yet") from error
    return found


def _figures(frames: Frames, name: str, out: Location) -> list[Shown]:
    drawn: Mapping[str, tuple[str, str, Callable[[str], Figure]]] = {
        "accuracy_vs_rewind": (
            "Accuracy against the rewind point",
            "Paper, Figures 5, 6 and 8. Dashed: the dense networks' mean.",
            partial(accuracy_vs_rewind, frames.results),
        ),
        "difference": (
            "What the permutation gains",
            "Permuted minus naive, paired: both arms of a replicate start from the same weights and see the same batches.",
            partial(difference_plot, frames.results),
        ),
        "accuracy_vs_sparsity": (
            "Accuracy against sparsity",
            "Paper, Figures 9 and 10.",
            partial(accuracy_vs_sparsity, frames.results),
        ),
        "lines": (
            "Lines between networks",
            "Paper, Figure 3 (right): test error on the way from one network to the other; bands: range over replicates.",
            partial(line_plot, frames.lines),
        ),
        "barrier_vs_width": (
            "Barrier against width",
            "Paper, Figure 3 (left): between pi(A) and B, test split.",
            partial(barrier_vs_width, frames.barriers),
        ),
        "planes": (
            "The plane through three networks",
            "Paper, Figure 4b: test error of the first replicate; axes are distances of weights.",
            partial(plane_plot, frames.planes),
        ),
        "imp_barriers": (
            "From dense A to its pruned selves",
            "Paper, Figure 4a: the barrier on the line from dense A to every round of IMP, test split.",
            partial(imp_barriers, frames.barriers),
        ),
        "match_quality": (
            "How well the units match",
            "Mean correlation of the matched units of A and B, by symmetry group (cosine where matched by weights).",
            partial(match_quality, frames.permutations),
        ),
        "match_effort": (
            "What a match is made from",
            "Paper, Table 15 (early matching): correlation, and the barrier that is left, test split. On few samples any "
            "match looks better correlated than it is.",
            partial(match_effort, frames.permutations, frames.barriers),
        ),
        "masks": (
            "What the masks keep and share",
            "By layer; dashed: the overlap that masks of these densities have by chance.",
            partial(mask_overlap, frames.masks),
        ),
    }
    shown = []
    for file, (title, text, draw) in drawn.items():
        try:
            figure = draw(f"{name}: {title[0].lower()}{title[1:]}")
        except ValueError as error:  # nothing to draw yet, and why
            shown.append(Shown(file, title, f"{text} Not drawn: {error}.", ""))
            continue
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once is enough for both files
        data = {kind: _rendered(figure, kind) for kind in ("png", "svg")}
        for kind, content in data.items():
            (out / "figures" / f"{file}.{kind}").write(content)
        picture = base64.b64encode(data["svg"]).decode()
        html = f'<img src="data:image/svg+xml;base64,{picture}" alt="{title}">'
        shown.append(Shown(file, title, text, html))
    return shown


def _tables(frames: Frames, out: Location) -> list[Shown]:
    tables = {
        "accuracy": (
            "Accuracy",
            "Test accuracy in percent: mean and standard deviation over n replicates.",
            accuracy_table(frames.results),
        ),
        "difference": (
            "Permuted against naive",
            "Difference in percentage points, paired by replicate, with its 95 % confidence interval (Student's t).",
            paired_differences(frames.results),
        ),
        "paper": (
            "Beside the paper",
            "Cells that the paper has, too; difference: ours minus the paper's.",
            beside_paper(frames.results),
        ),
        "barriers": (
            "Barriers from pi(A) to B",
            "The most that the test error (points) and loss (nats) on the line rise above the chord between its ends.",
            barrier_table(frames.barriers),
        ),
        "lines": (
            "Barriers of the other lines",
            "As above, between the networks that the sweep names.",
            line_table(frames.barriers),
        ),
        "imp_barriers": (
            "Barriers from dense A to the rounds of IMP",
            "As above, without a permutation: both are in one basin when the barrier is low.",
            imp_barrier_table(frames.barriers),
        ),
        "ensembles": (
            "Ensembles",
            "Paper, Table 1. Members alone (mean) and together, on the test split. Disagreement: share of samples on which "
            "two members predict differently; KL and JS in nats: means over pairs and samples, KL in both directions.",
            ensemble_table(frames.ensembles),
        ),
        "paper_ensembles": (
            "Ensembles beside the paper",
            "Where the paper's Table 1 has the set: its values, and ours minus the paper's.",
            ensembles_beside_paper(frames.ensembles),
        ),
        "masks": (
            "Masks",
            "Overlap (Jaccard) of two masks, means over replicates, and what masks of these densities share by chance; all: "
            "the whole network. Pruned units: outputs that no weight is left for, mean of the masks.",
            overlap_table(frames.masks),
        ),
        "permutations": (
            "Permutations",
            "Mean correlation of the matched units, and the share of units that stay where they are.",
            _match_table(frames.permutations),
        ),
    }
    shown = []
    for file, (title, text, frame) in tables.items():
        if frame.empty:
            shown.append(Shown(file, title, f"{text} Nothing to show yet.", ""))
            continue
        rounded = frame.round(3)
        (out / "tables" / f"{file}.csv").write(rounded.to_csv(index=False).encode())
        (out / "tables" / f"{file}.tex").write(_latex(rounded).encode())
        shown_as = wide_accuracy(frames.results) if file == "accuracy" else rounded
        html = shown_as.to_html(index=False, classes="numbers", border=0, na_rep="", float_format=lambda value: f"{value:g}")
        shown.append(Shown(file, title, text, html))
    return shown


def _match_table(permutations: pd.DataFrame) -> pd.DataFrame:
    cell = ["width", "match_method", "match_epoch", "match_samples", "group"]
    groups = permutations.groupby(cell, observed=True, sort=False, dropna=False)
    return groups.agg(
        correlation=("correlation", "mean"), fixed_share=("fixed_share", "mean"), n=("key", "nunique")
    ).reset_index()


def _latex(frame: pd.DataFrame) -> str:
    """Write a table as LaTeX's tabular (needs booktabs)."""
    named = frame.rename(columns=lambda name: str(name).replace("_", " "))
    return str(named.style.hide(axis="index").format(_plain, escape="latex", na_rep="--").to_latex(hrules=True))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _failure(row: dict[str, Any]) -> dict[str, str]:
    names = ("width", "replicate", "network", "arm", "sparsity", "rewind_epoch")
    where = ", ".join(f"{name} {row[name]}" for name in names if not pd.isna(row[name]))
    return {"stage": f"{row['stage']} ({where})", "status": row["status"], "error": str(row["error"])}


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _template() -> jinja2.Template:
    text = (importlib.resources.files("raylth.report") / "report.html.j2").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
