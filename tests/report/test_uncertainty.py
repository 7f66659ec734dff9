"""Barriers and ensembles with what they are worth: intervals, the signed middle, and what a maximum does to noise."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from raylth.report import (
    barrier_table,
    barrier_vs_width,
    ensemble_table,
    findings,
    imp_barrier_table,
    imp_barriers,
    line_table,
    render_barriers,
)
from raylth.report.compact import compact_barriers, compact_ensembles
from raylth.report.contents import TABLES
from tests.report.test_recipe import ensemble
from tests.report.test_report import LINE, row

RNG = np.random.default_rng(0)
DENSE = pd.DataFrame([row(stage="dense", arm=None, replicate=0, network="A", dataset="d", model="m")])


def lines(barriers, middles=None, **values):
    """A line per replicate."""
    middles = [None] * len(barriers) if middles is None else middles
    return pd.DataFrame(
        [
            {**LINE, "key": f"{values}{r}", "replicate": r, "width": 1.0, "match_epoch": 40, "match_samples": 500,
             "carries_masks": True, "error_barrier": barrier, "error_mid": middle, "loss_mid": None, **values}
            for r, (barrier, middle) in enumerate(zip(barriers, middles, strict=True))
        ]
    ).astype({"carries_masks": "boolean"})  # fmt: skip


def test_barriers_have_intervals_over_replicates_and_their_middle():
    barriers, middles = [11.0, 14.0, 12.5], [10.0, 9.0, 12.0]
    (found,) = barrier_table(lines(barriers, middles)).to_dict("records")
    for name, values in (("error_barrier", barriers), ("error_mid", middles)):
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert found[name] == pytest.approx(np.mean(values))
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((expected.low, expected.high))
    assert found["n"] == 3
    text = compact_barriers(pd.DataFrame([found]))
    assert text["error_barrier"].tolist() == ["12.5 (8.8 to 16.2)"]
    assert text["error_mid"].tolist() == ["+10.3 (+6.5 to +14.1)"]
    assert "loss_mid" not in text, "which these lines lack"


def test_a_barrier_is_not_below_0_and_a_middle_may_be():
    (found,) = barrier_table(lines([0.0, 0.1, 0.3], [-1.0, -0.5, 0.2])).to_dict("records")
    assert found["error_barrier_low"] == 0.0
    assert found["error_mid_low"] < -0.5


def test_a_single_line_has_no_interval_and_older_runs_have_no_middle():
    (found,) = barrier_table(lines([12.0]).drop(columns=["error_mid", "loss_mid"])).to_dict("records")
    assert found["error_barrier"] == 12.0
    assert np.isnan([found["error_barrier_low"], found["error_mid"], found["loss_mid_high"]]).all()
    assert compact_barriers(pd.DataFrame([found]))["error_barrier"].tolist() == ["12.0"]


def test_noise_raises_a_barrier_and_leaves_the_middle_where_it_is():
    """What the page says of maxima: between networks without any barrier, points that are off by a point on average."""
    points = RNG.normal(0, 1, (4000, 11))
    assert np.maximum(points.max(axis=1), 0).mean() > 1.5
    assert abs(points[:, 5].mean()) < 0.05
    texts = {entry.name: entry.text for entry in TABLES}
    for name in ("barriers", "lines", "imp_barriers"):
        assert "biased upwards" in texts[name]
        assert "signed" in texts[name]


def test_sentences_give_the_barriers_interval_and_the_signed_middle():
    rows = lines([11.0, 14.0, 12.5], [-10.0, -9.0, -12.0])
    others = lines([2.0, 3.0], between="A - B", carries_masks=None)
    said = findings(DENSE, pd.concat([rows, others]))
    (matched,) = [sentence for sentence in said if "pi(A)" in sentence]
    assert (
        "the test error barrier is 12.5 (8.8 to 16.2) points with plain interpolation, -10.3 (-14.1 to -6.5) at the midpoint"
        in matched
    )
    assert "mean and 95 % interval of 3 lines" in matched
    (other,) = [sentence for sentence in said if "Between A and B" in sentence]
    assert "in the middle" not in other


def test_figures_and_the_terminal_have_the_same_intervals():
    rounds = pd.concat(
        [lines([1.0, 2.0, 1.5], imp_round=n, sparsity=0.2 * n, between="A - imp", carries_masks=None) for n in (1, 2)]
    )
    widths = pd.concat([lines([10.0, 14.0, 12.0], width=w) for w in (1.0, 2.0)])
    for figure, table in ((imp_barriers, imp_barrier_table(rounds)), (barrier_vs_width, barrier_table(widths))):
        (axis,) = figure(rounds if figure is imp_barriers else widths, "t").axes
        (bars,) = axis.containers[0].lines[2]
        drawn = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert drawn == [
            [pytest.approx(low), pytest.approx(high)]
            for low, high in zip(table["error_barrier_low"], table["error_barrier_high"], strict=True)
        ]
    with open("/dev/null", "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(render_barriers(widths))
    text = console.export_text()
    assert text.count("12.0 (7.0 to 17.0)") == 2
    assert "maxima" in text


def test_a_line_that_two_sweeps_share_counts_once():
    rows = lines([1.0, 2.0], between="A - B", carries_masks=None)
    found = line_table(pd.concat([rows, rows.assign(sweep="another")]))
    assert found["n"].tolist() == [2]


def test_several_sets_of_an_ensemble_have_a_mean_and_an_interval():
    sets = pd.DataFrame([ensemble("imp", n, set_number=n) for n in range(3)] + [ensemble("lth", set_number=0)])
    table = ensemble_table(sets).set_index("set")
    assert table["sets"].to_dict() == {"imp": 3, "lth": 1}
    expected = stats.ttest_1samp([92.0, 93.0, 94.0], 0).confidence_interval(0.95)
    assert table.loc["imp", "ensemble_accuracy"] == 93.0
    bounds = table.loc["imp", ["ensemble_accuracy_low", "ensemble_accuracy_high"]]
    assert bounds.tolist() == pytest.approx([expected.low, expected.high])
    assert table.loc["imp", ["gain", "gain_low", "gain_high"]].tolist() == [2.0, 2.0, 2.0]
    assert table.loc["lth", ["gain_low", "gain_high"]].isna().all()
    text = compact_ensembles(table.reset_index())
    assert text["ensemble_accuracy"].tolist() == ["93.0 (90.5 to 95.5)", "92.0"]
    said = findings(DENSE, lines([1.0]).head(0), sets)
    assert any("together reach 93.0 (90.5 to 95.5) %" in sentence and "of 3 sets" in sentence for sentence in said)
    assert any("one set, so no interval" in sentence for sentence in said)


def test_ensembles_without_a_set_number_are_one_set_each():
    plain = pd.DataFrame([ensemble("imp"), ensemble("lth")])
    assert ensemble_table(plain)["sets"].tolist() == [1, 1]
    assert ensemble_table(plain.head(0)).empty
