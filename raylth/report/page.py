"""The report of one run: `report.html`, one file that needs nothing else, with its figures and tables beside it."""

import base64
import importlib.resources
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from raylth.report.figures import accuracy_vs_rewind, accuracy_vs_sparsity, difference_plot, imp_barriers, match_quality
from raylth.report.findings import findings
from raylth.report.paper import beside_paper
from raylth.report.results import load_barriers, load_ensembles, load_permutations, load_results
from raylth.report.statistics import paired_differences
from raylth.report.tables import accuracy_table, barrier_table, ensemble_table, imp_barrier_table, wide_accuracy
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


def write_report(run: Location, out: Location) -> Location:
    """Write a run's report to `out`: `report.html`, `figures/*.png` and `.svg`, `tables/*.csv` and `.tex`.

    `run` is its folder in a store, `<store>/runs/<run>`; the sweep may still be going on. Returns the page. Raises
    FileNotFoundError when the run has written nothing yet.
    """
    manifest, results = _manifest(run), load_results(run)
    barriers = _load(load_barriers, run, "barriers")
    permutations = _load(load_permutations, run, "permutations")
    name = manifest["config"]["name"]
    figures = _figures(results, permutations, barriers, name, out)
    ensembles = _load(load_ensembles, run, "ensembles")
    tables = _tables(results, barriers, permutations, ensembles, out)
    counts = pd.DataFrame(manifest["stages"]).T.fillna(0).astype(int)
    done = int(counts.get("done", pd.Series(dtype=int)).sum())
    total = int(counts.to_numpy().sum())
    failures = results[results["status"] != "done"]
    page = _template().render(
        name=name,
        manifest=manifest,
        subtitle=", ".join([manifest["config"]["data"]["name"], manifest["config"]["model"]["name"]]),
        done=done,
        total=total,
        counts=counts.to_html(classes="numbers", border=0),
        findings=findings(results, barriers, ensembles),
        figures=figures,
        tables=tables,
        failures=[_failure(row) for row in failures.head(SHOWN_FAILURES).to_dict("records")],
        num_failures=len(failures),
        settings=json.dumps(manifest["config"], indent=1),
        networks=len(results),
    )
    (out / "report.html").write(page.encode())
    return out / "report.html"


def _load(load: Callable[[Location], pd.DataFrame], run: Location, dataset: str) -> pd.DataFrame:
    """Load a dataset that a run of an older version may not have."""
    try:
        return load(run)
    except FileNotFoundError:
        return pd.DataFrame(columns=DATASETS[dataset].names)


def _manifest(run: Location) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / "manifest.json").read())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{run}: no manifest.json here, so no sweep has written anything yet") from error
    return found


def _figures(
    results: pd.DataFrame, permutations: pd.DataFrame, barriers: pd.DataFrame, name: str, out: Location
) -> list[Shown]:
    drawn: Mapping[str, tuple[str, str, Callable[[str], Figure]]] = {
        "accuracy_vs_rewind": (
            "Accuracy against the rewind point",
            "Paper, Figures 5, 6 and 8. Dashed: the dense networks' mean.",
            lambda title: accuracy_vs_rewind(results, title),
        ),
        "difference": (
            "What the permutation gains",
            "Permuted minus naive, paired: both arms of a replicate start from the same weights and see the same batches.",
            lambda title: difference_plot(results, title),
        ),
        "accuracy_vs_sparsity": (
            "Accuracy against sparsity",
            "Paper, Figures 9 and 10.",
            lambda title: accuracy_vs_sparsity(results, title),
        ),
        "imp_barriers": (
            "From dense A to its pruned selves",
            "Paper, Figure 4a: the barrier on the line from dense A to every round of IMP, test split.",
            lambda title: imp_barriers(barriers, title),
        ),
        "match_quality": (
            "How well the units match",
            "Mean correlation of the matched units of A and B, by symmetry group (cosine where matched by weights).",
            lambda title: match_quality(permutations, title),
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


def _tables(
    results: pd.DataFrame, barriers: pd.DataFrame, permutations: pd.DataFrame, ensembles: pd.DataFrame, out: Location
) -> list[Shown]:
    tables = {
        "accuracy": (
            "Accuracy",
            "Test accuracy in percent: mean and standard deviation over n replicates.",
            accuracy_table(results),
        ),
        "difference": (
            "Permuted against naive",
            "Difference in percentage points, paired by replicate, with its 95 % confidence interval (Student's t).",
            paired_differences(results),
        ),
        "paper": (
            "Beside the paper",
            "Cells that the paper has, too; difference: ours minus the paper's.",
            beside_paper(results),
        ),
        "barriers": (
            "Barriers from pi(A) to B",
            "The most that the test error (points) and loss (nats) on the line rise above the chord between its ends.",
            barrier_table(barriers),
        ),
        "imp_barriers": (
            "Barriers from dense A to the rounds of IMP",
            "As above, without a permutation: both are in one basin when the barrier is low.",
            imp_barrier_table(barriers),
        ),
        "ensembles": (
            "Ensembles",
            "Paper, Table 1. Members alone (mean) and together, on the test split. Disagreement: share of samples on which "
            "two members predict differently; KL and JS in nats: means over pairs and samples, KL in both directions.",
            ensemble_table(ensembles),
        ),
        "permutations": (
            "Permutations",
            "Mean correlation of the matched units, and the share of units that stay where they are.",
            _match_table(permutations),
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
        shown_as = wide_accuracy(results) if file == "accuracy" else rounded
        html = shown_as.to_html(index=False, classes="numbers", border=0, na_rep="", float_format=lambda value: f"{value:g}")
        shown.append(Shown(file, title, text, html))
    return shown


def _match_table(permutations: pd.DataFrame) -> pd.DataFrame:
    groups = permutations.groupby(["width", "match_method", "match_epoch", "group"], observed=True, sort=False)
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
