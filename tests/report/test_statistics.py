"""Contrasts of arms: over cells and replicates, paired or not, corrected, and honest about what a sweep lost."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raylth.arms import ARMS as ARMS_KNOWN
from raylth.arms import Arm
from raylth.report import (
    accuracy_table,
    contrast,
    contrast_cells,
    findings,
    mean_effects,
    paired_differences,
    recovered,
    render_table,
    unpaired_differences,
)
from raylth.store.tables import DATASETS
from tests.report.test_report import row

ARMS = {"lth": 66.0, "permuted": 60.0, "naive": 50.0, "random_permutation": 50.0, "random": 48.0}
PLANNED = [("permuted", "naive"), ("lth", "permuted"), ("permuted", "random_permutation"), ("naive", "random")]
SIGNS = [
    ("permuted_signs", "permuted"),
    ("permuted_signs", "signs"),
    ("signs", "naive"),
    ("signs_only", "random"),
]
CELLS = [(0.8, 0), (0.8, 10), (0.9, 0), (0.9, 10)]
NO_LINES = pd.DataFrame(columns=DATASETS["barriers"].names)


def sweep(arms=ARMS, replicates=4, cells=CELLS, noise=1.0, seed=0, **values):
    """Rows of a sweep whose arms have these accuracies, with noise that the arms of a replicate share, and of their own."""
    rng = np.random.default_rng(seed)
    of_replicate = rng.normal(0, 5, replicates)
    return pd.DataFrame(
        [
            row(arm=arm, replicate=r, sparsity=s, rewind_epoch=k, width=1.0, match_epoch=None,
                test_accuracy=level + of_replicate[r] + rng.normal(0, noise), **values)
            for arm, level in arms.items() for r in range(replicates) for s, k in cells
        ]
    ).assign(error=None)  # fmt: skip


def of_arm(results, arm):
    rows = results[results["arm"] == arm]
    return rows.pivot(index="replicate", columns=["sparsity", "rewind_epoch"], values="test_accuracy")


def lose(results, status="diverged", **where):
    """Let networks of a sweep be lost."""
    is_it = np.logical_and.reduce([results[name] == value for name, value in where.items()])
    assert is_it.any()
    return results.assign(
        status=results["status"].where(~is_it, status), test_accuracy=results["test_accuracy"].where(~is_it)
    )


def test_the_mean_effect_is_a_t_interval_over_means_of_replicates():
    """Cells of a replicate share networks: as evidence they are one."""
    results = sweep()
    effects = mean_effects(results).set_index(["label", "against"])
    assert list(effects.index) == PLANNED
    for first, second in PLANNED:
        means = (of_arm(results, first) - of_arm(results, second)).mean(axis=1)
        expected = stats.ttest_1samp(means, 0)
        found = effects.loc[(first, second)]
        assert found["difference"] == pytest.approx(means.mean())
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert found["p"] == pytest.approx(expected.pvalue)
        assert (found["n"], found["cells"]) == (4, 4)


def test_all_contrasts_of_the_arms_that_a_sweep_has_and_of_no_others():
    effects = mean_effects(sweep({"lth": 66.0, "permuted": 60.0, "naive": 50.0}))
    assert list(zip(effects["label"], effects["against"], strict=True)) == [("permuted", "naive"), ("lth", "permuted")]
    assert mean_effects(sweep({"lth": 66.0})).empty
    assert contrast_cells(sweep({"lth": 66.0})).empty


def test_the_arms_say_what_they_are_compared_with(monkeypatch):
    monkeypatch.setitem(
        ARMS_KNOWN._entries, "own:arm", Arm("B", "none", "x", against=("signs_only", "nowhere", "lth", "own:arm"))
    )
    arms = {**ARMS, "own:arm": 70.0, "signs_only": 40.0, "signs": 55.0, "permuted_signs": 63.0}
    found = contrast_cells(sweep(arms))
    expected = [*PLANNED, *SIGNS, ("arm", "lth"), ("arm", "signs_only")]
    assert sorted(set(zip(found["label"], found["against"], strict=True))) == sorted(expected)
    effects = mean_effects(sweep(arms)).set_index(["label", "against"])
    assert list(effects.index) == [*PLANNED, *SIGNS, ("arm", "signs_only"), ("arm", "lth")]
    assert effects.loc[("arm", "signs_only"), "difference"] == pytest.approx(30, abs=2)
    assert effects.loc[("permuted_signs", "signs"), "difference"] == pytest.approx(8, abs=2)


def test_two_arms_under_permuted_masks_are_compared_within_each_way_of_matching():
    arms = sweep({"permuted": 60.0, "permuted_signs": 63.0, "naive": 50.0})
    permuted = arms["arm"] != "naive"
    ways = [arms.assign(match_method=arms["arm"].where(~permuted, way).where(permuted)) for way in ("activations", "weights")]
    both = pd.concat([ways[0], ways[1][permuted]], ignore_index=True)
    effects = mean_effects(both)
    assert set(zip(effects["label"], effects["against"], strict=True)) == {
        ("permuted activations", "naive"),
        ("permuted weights", "naive"),
        ("permuted_signs activations", "permuted activations"),
        ("permuted_signs weights", "permuted weights"),
    }


def test_cells_are_corrected_for_all_cells_of_all_contrasts():
    found = contrast_cells(sweep())
    assert len(found) == len(PLANNED) * len(CELLS)
    smallest = found.loc[found["p"].idxmin()]
    assert smallest["p_holm"] == pytest.approx(min(1.0, smallest["p"] * len(found)))
    assert (found["p_holm"] >= found["p"]).all()
    effects = mean_effects(sweep())
    assert effects["p_holm"].min() == pytest.approx(effects["p"].min() * len(PLANNED))


def test_an_arm_that_was_matched_in_two_ways_is_compared_in_both_also_as_the_second():
    results = sweep()
    early = results[results["arm"] == "permuted"]
    results.loc[results["arm"] == "permuted", "match_epoch"] = 40
    early = early.assign(match_epoch=5, key=early["key"] + " early", test_accuracy=early["test_accuracy"] - 7)
    both = pd.concat([results, early])
    effects = mean_effects(both).set_index(["label", "against"])["difference"]
    assert effects["permuted @40", "naive"] == pytest.approx(effects["permuted @5", "naive"] + 7)
    assert effects["lth", "permuted @5"] == pytest.approx(effects["lth", "permuted @40"] + 7)
    assert paired_differences(both, "lth", "permuted")["n"].tolist() == [4] * 8


def test_replicates_that_do_not_share_their_dense_networks_are_no_pairs():
    results = sweep()
    shared = results.assign(pair_key=results["replicate"].astype(str))
    pd.testing.assert_frame_equal(contrast(shared), paired_differences(results))
    apart = results.assign(pair_key=results["arm"] + results["replicate"].astype(str))
    pd.testing.assert_frame_equal(contrast(apart), unpaired_differences(results))
    found = contrast(apart)
    assert set(found["design"]) == {"unpaired"}
    for cell in found.itertuples():
        ours, theirs = (of_arm(results, arm)[cell.sparsity, cell.rewind_epoch] for arm in ("permuted", "naive"))
        expected = stats.ttest_ind(ours, theirs, equal_var=False)
        assert (cell.low, cell.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert cell.p == pytest.approx(expected.pvalue)
    effect = mean_effects(apart).iloc[0]
    means = [of_arm(results, arm).mean(axis=1) for arm in ("permuted", "naive")]
    expected = stats.ttest_ind(*means, equal_var=False)
    assert (effect["low"], effect["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    paired = mean_effects(results).iloc[0]
    assert effect["high"] - effect["low"] > 3 * (paired["high"] - paired["low"]), "pairs help"
    assert recovered(apart).empty
    said = findings(apart, NO_LINES)
    assert "unpaired (Welch)" in said[0]
    assert not any("makes up for" in sentence for sentence in said)
    assert "unpaired" not in findings(shared, NO_LINES)[0]


def test_the_share_is_that_of_means_over_replicates():
    results = sweep()
    above, below = (of_arm(results, arm) - of_arm(results, "naive") for arm in ("permuted", "lth"))
    (found,) = recovered(results).to_dict("records")
    assert found["share"] == pytest.approx(above.mean().mean() / below.mean().mean())
    for end in (found["low"], found["high"]):
        assert stats.ttest_1samp((above - end * below).mean(axis=1), 0).pvalue == pytest.approx(0.05)
    cells = recovered(results, by_cell=True)
    assert len(cells) == len(CELLS)
    for cell in cells.itertuples():
        name = (cell.sparsity, cell.rewind_epoch)
        assert cell.share == pytest.approx(above[name].mean() / below[name].mean())


def test_no_share_of_a_distance_that_may_be_none():
    level = sweep({"lth": 50.1, "permuted": 60.0, "naive": 50.0})
    assert recovered(level).empty
    assert not any("makes up for" in sentence for sentence in findings(level, NO_LINES))
    one = sweep(replicates=1)
    assert recovered(one).empty, "one replicate shows no distance"
    shared = sweep()
    is_cell = (shared["sparsity"] == 0.8) & (shared["rewind_epoch"] == 0) & (shared["arm"] == "lth")
    naive = of_arm(shared, "naive")[0.8, 0].to_numpy()
    shared.loc[is_cell, "test_accuracy"] = naive + np.array([3.0, -3.0, 2.0, -2.0])
    cells = recovered(shared, by_cell=True)
    assert list(zip(cells["sparsity"], cells["rewind_epoch"], strict=True)) == CELLS[1:]


def test_the_first_sentence_is_the_mean_effect_with_its_interval():
    results = sweep()
    said = findings(results, NO_LINES)
    first, details = said[0].split("\n")
    effect = mean_effects(results).iloc[0]
    assert first == (
        f"permuted beats naive by {effect['difference']:.1f} points on average (95 % confidence interval "
        f"{effect['low']:.1f} to {effect['high']:.1f}, n = 4 replicates)."
    )
    assert "in 4 of 4 cells" in details
    assert f"power of 80 %: {effect['smallest']:.2f} points" in details
    assert "Holm" in details
    starts = ("permuted beats naive", "lth beats permuted", "permuted beats random_permutation")
    assert [sentence.startswith(start) for sentence, start in zip(said, starts, strict=False)] == [True] * 3


def test_an_arm_that_is_worse_and_one_without_a_significant_difference():
    behind = findings(sweep({"permuted": 40.0, "naive": 50.0}), NO_LINES)[0]
    assert behind.startswith("permuted is behind naive by ")
    low, high = (float(end) for end in behind.split("interval ")[1].split(",")[0].split(" to "))
    assert 0 < low < high
    assert "behind in 4 of 4 cells" in behind
    alike = findings(sweep({"permuted": 50.0, "naive": 50.0}), NO_LINES)[0]
    assert alike.startswith("That permuted and naive differ is not shown: ")
    one = findings(sweep({"permuted": 60.0, "naive": 50.0}, replicates=1), NO_LINES)[0]
    assert "in the one replicate, so there is no interval" in one
    assert "power" not in one


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_lost_networks_are_counted_and_named_wherever_they_are_missing(status):
    results = lose(sweep(), status, arm="naive", replicate=2, sparsity=0.9, rewind_epoch=10)
    name = f"naive at sparsity 0.9, k = 10, replicate 2 ({status})"
    said = findings(results, NO_LINES)
    touched = [sentence for sentence in said if name in sentence]
    assert len(touched) == 3
    assert touched[0].startswith("permuted beats naive")
    assert "naive and random" in touched[1] or "naive beats random" in touched[1]
    assert touched[2].startswith("permuted makes up for")
    assert "over 3 cells of 4 (those that every replicate has)" in said[0]
    cells = accuracy_table(results).set_index(["sparsity", "rewind_epoch", "label"])
    assert cells.loc[(0.9, 10, "naive"), ["n", "lost"]].tolist() == [3, 1]
    assert cells["lost"].sum() == 1
    assert paired_differences(results).set_index(["sparsity", "rewind_epoch"]).loc[(0.9, 10), ["n", "lost"]].tolist() == [
        3,
        1,
    ]
    assert name in str(render_table(results, "t").caption)


def test_cells_and_replicates_that_were_lost_whole():
    results = lose(sweep(), arm="naive", sparsity=0.9, rewind_epoch=10)
    cells = accuracy_table(results).set_index(["sparsity", "rewind_epoch", "label"])
    assert cells.loc[(0.9, 10, "naive"), ["n", "lost"]].tolist() == [0, 4]
    assert np.isnan(cells.loc[(0.9, 10, "naive"), "mean"])
    assert mean_effects(results)["cells"].tolist() == [3, 4, 4, 3]
    without = lose(sweep(), arm="naive", replicate=0)
    assert mean_effects(without)["n"].tolist() == [3, 4, 4, 3], "a replicate without an arm is in no mean of it"
    assert "Without 4 that diverged: naive at sparsity 0.8, k = 0, replicate 0" in findings(without, NO_LINES)[0]


def test_a_dense_network_that_was_lost_is_named_where_its_arms_are_missing():
    results = sweep()
    dense = pd.DataFrame(
        [row(stage="dense", arm=None, network=n, replicate=0, sparsity=0.0, rewind_epoch=None, status=s, test_accuracy=a,
             dataset="d", model="m") for n, s, a in (("A", "done", 70.0), ("B", "diverged", None))]
    )  # fmt: skip
    said = findings(pd.concat([results[results["replicate"] != 0], dense]), NO_LINES)
    assert "dense B, replicate 0 (diverged)" in said[0]
    (line,) = [sentence for sentence in said if sentence.startswith("The dense networks")]
    assert "without 1 that diverged: dense B, replicate 0 (diverged)" in line


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("find", "A's mask at sparsity 0.9, replicate 0 (failed)"),
        ("mask", "A's mask from its file at sparsity 0.9, replicate 0"),
    ],
)
def test_a_mask_that_was_not_found_is_named_where_its_arms_are_missing(stage, name):
    results = sweep()
    lost = row(stage=stage, arm=None, network="A", replicate=0, rewind_epoch=None, status="failed", test_accuracy=None)
    results = pd.concat([results[(results["replicate"] != 0) | (results["sparsity"] != 0.9)], pd.DataFrame([lost])])
    said = findings(results, NO_LINES)
    assert f"Without 1 that failed: {name}" in said[0]
    assert said[0].endswith(", and what needs them.")
    assert name in next(line for line in said if line.startswith("permuted makes up for"))
    assert name in str(render_table(results, "t").caption)


def test_a_line_names_the_lost_networks_of_arms_whose_names_are_no_words():
    own = row(arm="own-arm:x.y", replicate=1, status="failed", test_accuracy=None, match_epoch=None)
    other = row(arm="arm", replicate=1, status="failed", test_accuracy=None, match_epoch=None)
    line = dict.fromkeys(DATASETS["barriers"].names) | {
        "key": "line", "stage": "connect", "between": "lth - pi^-1(own-arm:x.y)", "width": 1.0, "replicate": 0,
        "split": "test", "sparsity": 0.9, "rewind_epoch": 0, "correction": "plain", "error_barrier": 1.0, "loss_barrier": 0.1,
    }  # fmt: skip
    said = findings(pd.concat([sweep(), pd.DataFrame([own, other])]), pd.DataFrame([line]))
    (sentence,) = (each for each in said if each.startswith("Between lth and pi^-1(own-arm:x.y)"))
    assert "without 1 that failed: own-arm:x.y at sparsity 0.9, k = 0, replicate 1 (failed)" in sentence


def test_what_another_run_of_the_store_finished_is_not_lost():
    results = lose(sweep(), arm="naive", replicate=2, sparsity=0.9, rewind_epoch=10)
    again = results[results["status"] == "diverged"].assign(status="done", test_accuracy=50.0, run="r-2", key="again")
    assert accuracy_table(pd.concat([results, again]))["lost"].sum() == 0


def test_a_sweep_without_complete_cells_has_no_mean_effect():
    results = sweep({"permuted": 60.0, "naive": 50.0}, replicates=2, cells=CELLS[:2])
    results = lose(results, arm="naive", replicate=0, rewind_epoch=0)
    results = lose(results, arm="naive", replicate=1, rewind_epoch=10)
    assert mean_effects(results)["cells"].tolist() == [0]
    assert "no cell has both of every replicate" in findings(results, NO_LINES)[0]
