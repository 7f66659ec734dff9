import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from raylth.report import (
    accuracy_table,
    accuracy_vs_rewind,
    accuracy_vs_sparsity,
    barrier_table,
    barrier_vs_width,
    difference_plot,
    findings,
    line_plot,
    load_results,
    match_effort,
    render_table,
)
from raylth.report.style import legend_below, looks_of, new_panels
from raylth.report.tables import own_matches
from raylth.store import locate
from raylth.store.tables import read_table, write_table


def row(**values):
    base = {
        "key": str(values), "run": "r-1", "sweep": "r", "stage": "sparse", "width": 1.0, "sparsity": 0.9,
        "rewind_epoch": 0, "arm": "lth", "match_epoch": None, "status": "done", "test_accuracy": 50.0,
        "seed_a": 2**32 - 1,
    }  # fmt: skip
    return {**base, **values}


ROWS = [
    *(row(replicate=r, test_accuracy=a) for r, a in enumerate((60.0, 62.0, 64.0))),
    *(row(replicate=r, arm="naive", test_accuracy=a) for r, a in enumerate((40.0, 44.0))),
    row(replicate=2, arm="naive", status="failed", test_accuracy=None, error="Diverged: no"),
    row(replicate=0, arm="permuted", match_epoch=2, test_accuracy=50.0),
    row(replicate=0, arm="permuted", match_epoch=4, test_accuracy=55.0),
    *(row(replicate=r, stage="dense", arm=None, rewind_epoch=None, test_accuracy=a) for r, a in enumerate((70.0, 71.0))),
]


@pytest.fixture
def results(tmp_path):
    write_table(locate(tmp_path), "results", "r-1", ROWS, {"config": {}})
    return load_results(tmp_path)


def test_mean_and_deviation_over_finished_replicates(results):
    cells = accuracy_table(results).set_index("label")
    assert cells.loc["lth", ["mean", "std", "n"]].tolist() == [62.0, 2.0, 3]
    assert cells.loc["naive", "mean"] == 42.0
    assert cells.loc["naive", "std"] == pytest.approx(np.std([40, 44], ddof=1))
    assert cells.loc["permuted @2", "mean"] == 50.0


def other_run(rows, **changes):
    """The same cells in a run that differs in a setting: other networks, other keys."""
    return rows.assign(key=rows["key"] + " of r-2", run="r-2", **changes)


@pytest.mark.parametrize("changes", [{}, {"schedule": "rewound"}, {"dataset": "digits", "replicate": 7}, {"model": "vgg11"}])
def test_networks_of_runs_that_differ_are_not_replicates(results, changes):
    results = results.assign(dataset="mnist1d", model="mlp", schedule="fresh")
    lth = results[results["arm"] == "lth"]
    with pytest.raises(ValueError, match="no replicates") as caught:
        accuracy_table(pd.concat([results, other_run(lth.iloc[:1], **changes)]))
    assert str(caught.value) == (
        "width 1.0, sparsity 0.9, rewind_epoch 0, label lth: r-1 and r-2 differ in a setting, so their networks are no "
        'replicates of each other: read one of them, load_results("<store>/runs/<run>")'
    )


def test_runs_that_meet_in_no_cell_stand_in_one_table(results):
    """Another sparsity, width, rewind point, match epoch or method, and a replicate that failed the first time."""
    permuted = results[results["arm"] == "permuted"]
    elsewhere = [
        other_run(results, **{name: value}) for name, value in (("sparsity", 0.5), ("width", 2.0), ("rewind_epoch", 3))
    ]
    methods = [other_run(permuted, match_method=method) for method in ("weight", "learned")]
    again = other_run(results[results["status"] == "failed"], status="done", test_accuracy=42.0)
    cells = accuracy_table(pd.concat([results, *elsewhere, *methods, again]))
    assert cells["n"].max() == 3
    assert {"permuted @2", "permuted weight @2", "permuted learned @4"} <= set(cells["label"])


def test_a_network_that_two_sweeps_share_counts_once(results):
    shared = pd.concat([results, results.assign(sweep="other", run="other-1")])
    pd.testing.assert_frame_equal(accuracy_table(shared), accuracy_table(results))
    assert "dense: 70.5 ± 0.7 (n = 2)" in str(render_table(shared, "t").caption)


@pytest.mark.parametrize("draw", [render_table, accuracy_vs_rewind])
def test_dense_networks_of_runs_that_differ_are_not_pooled(results, draw):
    dense = results[results["stage"] == "dense"]
    pair = pd.concat([results, dense.assign(network="B", key=dense["key"] + " B")])
    assert draw(pair, "t") is not None
    with pytest.raises(ValueError, match=r"^stage dense, width 1.0: r-1 and r-2 differ"):
        draw(pd.concat([results, other_run(dense)]), "t")


def test_the_terminal_table_orders_arms_and_names_dense(results):
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_table(results, "a title"))
    console.file.close()
    text = console.export_text()
    assert text.index("lth") < text.index("permuted @2") < text.index("permuted @4") < text.index("naive")
    assert "62.0 ± 2.0" in text
    assert "dense: 70.5 ± 0.7 (n = 2)" in text


def test_the_five_arms_of_the_quickstart_have_a_row_for_each_cell_in_80_columns(results):
    naive = results[results["arm"] == "naive"]
    others = ("permuted", "random", "random_permutation")
    lone = results[~results["arm"].isin(others) & (results["status"] == "done")]
    naive = naive[naive["status"] == "done"]
    five = pd.concat([lone, *(naive.assign(arm=name, key=naive["key"] + name) for name in others)])
    with open("/dev/null", "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(render_table(five, "a title", max_width=80))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("permutation" in line and "±" not in line and "naive" in line for line in lines) == 1, "the heading"
    assert any(line.count("±") == 5 for line in lines)


@pytest.mark.parametrize("columns", [80, 64])
def test_no_number_is_broken_over_two_lines_in_a_narrow_terminal(results, columns):
    methods = ["activation", "weight", "learned", "identity", "random"]
    permuted = results["arm"] == "permuted"
    many = pd.concat([results[~permuted], *(results[permuted].assign(match_method=method) for method in methods)])
    with open("/dev/null", "w") as nowhere:
        console = Console(width=columns, record=True, file=nowhere)
        console.print(render_table(many, "a title", max_width=columns))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= columns
    assert "62.0 ± 2.0" in text
    assert all(f"permuted {method} @4" in text for method in methods)
    assert text.count("0.90") == 1, "the cell's name stands once"


def test_types_survive(results):
    assert results["seed_a"].tolist() == [2**32 - 1] * len(ROWS)
    assert results["rewind_epoch"].isna().sum() == 2
    assert str(results["match_epoch"].dtype) == "Int64"
    assert results["error"].notna().sum() == 1


def test_the_figure_has_a_panel_per_cell_and_a_line_per_arm(results, tmp_path):
    wide = pd.concat([results, results.assign(sparsity=0.5), results.assign(width=2.0)])
    figure = accuracy_vs_rewind(wide, "t")
    assert len(figure.axes) == 4
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["dense", "lth", "permuted @2", "permuted @4", "naive"]
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "points: mean over replicates (n = 1 to 3); bars: one standard deviation"
    figure.savefig(tmp_path / "f.png")
    with pytest.raises(ValueError, match="no sparse network has finished"):
        accuracy_vs_rewind(results[results["stage"] == "dense"], "t")


def test_the_caption_of_the_figure_fits_into_the_narrowest(results):
    figure = accuracy_vs_rewind(results[results["arm"] != "permuted"], "t")
    figure.canvas.draw()
    caption = figure.legends[0].get_title()
    assert "(n = 2 to 3)" in caption.get_text()
    box = caption.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_no_name_of_an_arm_is_cut_off(results):
    naive = results[results["arm"] == "naive"]
    more = [naive.assign(arm=name, key=naive["key"] + name) for name in ("random", "random_permutation")]
    figure = accuracy_vs_rewind(pd.concat([results, *more]), "t")
    figure.canvas.draw()
    for text in figure.legends[0].get_texts():
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text.get_text()


def test_one_row_per_network_when_runs_of_a_sweep_share_it(tmp_path):
    write_table(locate(tmp_path), "results", "r-1", ROWS, {})
    write_table(locate(tmp_path), "results", "r-2", [{**entry, "run": "r-2"} for entry in ROWS], {})
    assert load_results(tmp_path)["key"].is_unique
    assert set(load_results(tmp_path)["run"]) == {"r-2"}


def test_a_newer_or_missing_table_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"results: no results here"):
        read_table(locate(tmp_path), "results")
    monkeypatch.setattr("raylth.store.tables.TABLE_SCHEMA", 99)
    write_table(locate(tmp_path), "results", "r-1", ROWS, {})
    monkeypatch.setattr("raylth.store.tables.TABLE_SCHEMA", 1)
    with pytest.raises(ValueError, match="schema 99"):
        read_table(locate(tmp_path), "results")


def test_figures_of_many_cells_stay_readable(results):
    cells = [
        row(replicate=r, arm=arm, rewind_epoch=k, test_accuracy=50.0 + k * (arm == "permuted") + r)
        for k in range(50) for arm in ("permuted", "naive") for r in range(2)
    ]  # fmt: skip
    frame = pd.DataFrame(cells).assign(member=None)
    panels = accuracy_vs_sparsity(frame, "many").axes
    assert [axis.get_title() for axis in panels] == ["k = 0", "k = 10", "k = 20", "k = 29", "k = 39", "k = 49"]
    axis = difference_plot(frame, "many").axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert len(names) == 40
    assert {"S = 0.9, k = 0", "S = 0.9, k = 49"} < set(names), "those that gain least and most"
    assert "10 in between" in axis.get_xlabel()


LINE = {"sweep": "r", "run": "r-1", "between": "pi(A) - B", "split": "test", "correction": "plain",
        "match_method": "activation", "imp_round": None, "sparsity": None, "rewind_epoch": None,
        "loss_barrier": 0.1}  # fmt: skip


def barriers_of(*lines):
    """Lines at (width, epoch, samples, carries, barrier), two replicates each."""
    rows = [
        {**LINE, "key": f"{number}-{r}", "replicate": r, "width": float(width), "match_epoch": epoch,
         "match_samples": samples, "carries_masks": carries, "error_barrier": barrier + r}
        for number, (width, epoch, samples, carries, barrier) in enumerate(lines) for r in range(2)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.astype({"carries_masks": "boolean", "match_epoch": "Int64", "match_samples": "Int64"})


LINES = [
    (1, 40, 500, True, 40),
    (4, 40, 500, True, 10),
    (1, 5, 500, False, 90),
    (4, 5, 500, False, 80),
    (1, 40, 900, False, 70),
]


def test_barriers_of_other_widths_epochs_and_samples_are_not_pooled():
    """What the figure of widths draws, the table lists and the sentences say is of the matches that carry masks alone."""
    barriers = barriers_of(*LINES)
    (axis,) = barrier_vs_width(barriers, "t").axes
    (line,) = [container.lines[0] for container in axis.containers]
    assert line.get_xydata().tolist() == [[1.0, 40.5], [4.0, 10.5]]
    table = barrier_table(pd.concat([barriers, barriers.assign(sweep="another")]))
    assert table[["width", "error_barrier", "n"]].to_numpy().tolist() == [[1.0, 40.5, 2], [4.0, 10.5, 2]]
    dense = [row(stage="dense", arm=None, replicate=0, network="A", width=w, dataset="d", model="m") for w in (1.0, 4.0)]
    said = [sentence for sentence in findings(pd.DataFrame(dense), barriers) if "pi(A)" in sentence]
    assert len(said) == 2
    for sentence, (width, barrier) in zip(said, ((1, 40.5), (4, 10.5)), strict=True):
        assert f"width {width}, the test error barrier is {barrier}" in sentence


def test_what_a_match_is_made_from_is_drawn_by_width():
    barriers = barriers_of(*LINES)
    matches = barriers.assign(unit_group="g", correlation=barriers["error_barrier"] / 100, member=None)
    axes = match_effort(matches, barriers, "t").axes
    by_epoch = {c.get_label(): c.lines[0].get_xydata().tolist() for c in axes[1].containers}
    assert by_epoch == {
        "activation, width 1": [[5.0, pytest.approx(0.905)], [40.0, pytest.approx(0.405)]],
        "activation, width 4": [[5.0, pytest.approx(0.805)], [40.0, pytest.approx(0.105)]],
    }
    by_samples = {c.get_label(): len(c.lines[0].get_xydata()) for c in axes[0].containers}
    assert by_samples == {"activation, width 1": 2, "activation, width 4": 1}


def test_lines_of_different_cells_have_panels_of_their_own():
    rows = [
        {**LINE, "key": f"{s}", "between": "lth - permuted", "match_epoch": None, "match_samples": None,
         "carries_masks": None, "match_method": None, "width": 1.0, "replicate": 0, "sparsity": s, "rewind_epoch": 10,
         "alpha": alpha, "error": 100 * s * alpha}
        for s in (0.8, 0.9) for alpha in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    axes = line_plot(pd.DataFrame(rows), "t").axes
    assert [axis.get_title() for axis in axes] == ["lth - permuted, S = 0.8, k = 10", "lth - permuted, S = 0.9, k = 10"]
    assert [axis.lines[0].get_ydata().tolist() for axis in axes] == [[0.0, 40.0, 80.0], [0.0, 45.0, 90.0]]


def test_matches_of_an_ensemble_do_not_enter_the_mean():
    matches = barriers_of(*LINES[:1]).assign(unit_group="g", correlation=[0.5, 0.7], fixed_share=0.0, member=None)
    crossing = matches.assign(key="x", member=1, correlation=0.1)
    assert own_matches(pd.concat([matches, crossing]))["correlation"].tolist() == [0.5, 0.7]


def test_arms_of_one_colour_differ_in_their_dash(results):
    axis = accuracy_vs_rewind(results, "t").axes[0]
    permuted = [c.lines[0] for c in axis.containers if str(c.get_label()).startswith("permuted")]
    assert len({line.get_linestyle() for line in permuted}) == len(permuted) == 2


def test_a_line_looks_alike_in_every_panel_and_the_legend_has_all(tmp_path):
    """Of a sweep that continues, a panel may lack what others have."""
    figure, axes = new_panels(2, 2, "unfinished")
    labels = [("permuted", "permuted activation"), ("permuted", "permuted weight"), ("lth", "lth")]
    looks = looks_of(labels)
    assert list(looks) == [("lth", "lth"), *labels[:2]]
    assert looks[labels[0]]["color"] == looks[labels[1]]["color"]
    assert looks[labels[0]]["linestyle"] != looks[labels[1]]["linestyle"]
    for axis, shown in zip(axes, ([labels[1]], labels), strict=True):
        for arm in shown:
            axis.plot([0, 1], [0, 1], label=arm[1], **looks[arm])
    legend_below(figure, axes, "all", [label for _, label in looks])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lth", "permuted activation", "permuted weight"]
    dashes = {line.get_linestyle() for axis in axes for line in axis.lines if line.get_label() == "permuted weight"}
    assert len(dashes) == 1
