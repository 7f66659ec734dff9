"""Lines and planes through any networks, overlaps of masks, and matches from less: planned right, and measured right."""

import pandas as pd
import pytest
import torch

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.interpolate import Plane, interpolate
from raylth.core.permutation import derive_spec
from raylth.core.training.loop import evaluate
from raylth.driver.run_record import Run
from raylth.report import load_barriers, load_lines, load_masks, load_permutations, load_planes
from raylth.stages import load_data, make_context, make_plan, result_rows, run_plan
from raylth.stages.endpoints import load_permutation
from raylth.stages.training import load_mask, load_network
from raylth.store import Store
from tests.conftest import tiny_sweep

SWEEP = {
    "data": {"name": "digits", "num_train": 200, "num_test": 90},
    "seeds": {"replicates": 2},
    "model": {"name": "resnet20", "widths": [0.25]},
    "dense": {"epochs": 2},
    "match": {"epochs": [2]},
    "sparse": {"arms": ["lth", "naive", "permuted"], "sparsities": [0.5], "rewinds": [0, 1]},
}
LINE = {"points": 3, "corrections": ["plain", "reset"], "samples": 60}
ANALYSES = {
    "lines": [
        {"between": ["A", "B"], **LINE},
        {"between": ["lth", "pi^-1( permuted )"], "rewind": 0, **LINE},
        {"between": ["pi(imp)", "B"], **LINE},
    ],
    "planes": [{"resolution": 3, "margin": 0, "samples": 60, "correction": "plain"}, {"resolution": 2, "samples": 60}],
    "overlap": {"own": True},
    "match_quality": {"samples": [20, 100], "epochs": [1], "line": LINE},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny_sweep(**SWEEP, analyses=ANALYSES)
    plan, store = make_plan(config), Store(tmp_path_factory.mktemp("store"))
    graph = run_plan(plan, store)
    assert not graph.errors
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return plan, store, run


def stages(plan, kind, **labels):
    found = [stage for stage in plan.stages if stage.kind == kind and labels.items() <= stage.labels.items()]
    assert found, (kind, labels)
    return found


def permutation_of(stage, context):
    """The match that a stage uses, read apart from what the stage makes of it."""
    network = load_network(stage.settings.model, context, stage.parents["a"])
    perms = context.load(stage.parents["permutation"], "permutation")
    spec = derive_spec(network, context.train.probe(2))
    found = load_permutation(stage, context, network)
    assert found.spec.groups == spec.groups
    assert all(torch.equal(found.perms[group], torch.tensor(perm)) for group, perm in perms.items())
    return found


def test_a_line_joins_the_networks_that_are_named(finished):
    plan, store, run = finished
    dense = {s.labels["network"]: s.key for s in stages(plan, "dense", replicate=0)}
    (plain,) = stages(plan, "connect", between="A - B", replicate=0)
    assert plain.parents == {"a": dense["A"], "b": dense["B"]}
    (moved,) = stages(plan, "connect", between="lth - pi^-1(permuted)", replicate=0)
    arms = {s.labels["arm"]: s.key for s in stages(plan, "sparse", replicate=0, rewind_epoch=0)}
    assert (moved.parents["a"], moved.parents["b"]) == (arms["lth"], arms["permuted"])
    rows = load_barriers(run.folder)
    assert set(rows["between"]) == {"A - B", "lth - pi^-1(permuted)", "pi(imp) - B", "pi(A) - B"}
    lines = load_lines(run.folder)
    assert len(lines) == 3 * len(rows), "three points a line"
    both = lines[(lines["key"] == moved.key) & (lines["correction"] == "plain") & (lines["split"] == "test")]
    context = make_context(store, load_data(plan.config.data))
    permutation = permutation_of(moved, context)
    lth, permuted = (load_network(moved.settings.model, context, moved.parents[role]) for role in "ab")
    back = permutation.inverse().apply(permuted.state_dict())
    assert any(not torch.equal(back[name], tensor) for name, tensor in permuted.state_dict().items())
    for point in both.itertuples():
        permuted.load_state_dict(interpolate(lth.state_dict(), back, point.alpha))
        loss, accuracy, _ = evaluate(permuted, context.test)
        assert point.loss == pytest.approx(loss, rel=1e-4)
        assert point.error == pytest.approx(100 - accuracy)


def test_pi_of_a_pruned_a_is_a_network_that_computes_the_same(finished):
    plan, _, run = finished
    lines = load_lines(run.folder)
    pruned = {s.labels["replicate"]: s.key for s in stages(plan, "imp", network="A", landing=True)}
    context = make_context(finished[1], load_data(plan.config.data))
    starts = lines[(lines["between"] == "pi(imp) - B") & (lines["alpha"] == 0) & (lines["split"] == "test")]
    assert len(starts) == 4
    starts = starts[starts["correction"] == "plain"]
    for row in starts.itertuples():
        network = load_network(stages(plan, "imp")[0].settings.model, context, pruned[row.replicate])
        assert row.loss == pytest.approx(evaluate(network, context.test)[0], rel=1e-4)


def test_the_corners_of_a_plane_are_the_networks(finished):
    plan, store, run = finished
    context = make_context(store, load_data(plan.config.data))
    rows = load_planes(run.folder)
    for stage in stages(plan, "plane"):
        own = rows[(rows["key"] == stage.key) & (rows["split"] == "test")]
        assert own["corner"].notna().sum() == 3
        assert own["corner"].isna().sum() == stage.settings.resolution**2
        corners = own.dropna(subset="corner").set_index("corner")
        assert list(corners.index) == ["A", "lth", "pi^-1(permuted)"]
        for role, (_, corner) in zip("abc", corners.iterrows(), strict=True):
            network = load_network(stage.settings.model, context, stage.parents[role])
            loss, accuracy, _ = evaluate(network, context.test)
            assert corner["plain_loss"] == pytest.approx(loss, rel=1e-4), "moving units changes no function"
            assert corner["plain_error"] == pytest.approx(100 - accuracy)
            if stage.settings.correction == "reset":
                reset_bn_stats(network, [context.train.probe(stage.settings.samples)])
                loss, accuracy, _ = evaluate(network, context.test)
            assert corner["loss"] == pytest.approx(loss, rel=1e-2), "the corners are measured as the grid is"
        grid = own[own["corner"].isna()]
        margin = stage.settings.margin
        for axis in "xy":
            extent = corners[axis].max() - corners[axis].min()
            assert grid[axis].min() == pytest.approx(corners[axis].min() - margin * extent, abs=1e-6)
            assert grid[axis].max() == pytest.approx(corners[axis].max() + margin * extent)


def test_a_plane_is_measured_where_it_is(finished):
    """Every point of the grid is the sum of the three networks that barycentric coordinates say, pi^-1 undone by hand."""
    plan, store, run = finished
    context = make_context(store, load_data(plan.config.data))
    rows = load_planes(run.folder)
    stage = next(s for s in stages(plan, "plane", replicate=0) if s.settings.correction == "plain")
    network = load_network(stage.settings.model, context, stage.parents["a"])
    names = [name for name, _ in network.named_parameters()]
    a, b, c = (load_network(stage.settings.model, context, stage.parents[role]).state_dict() for role in "abc")
    c = permutation_of(stage, context).inverse().apply(c)

    def inner(one, other):
        return sum(float(((one[n] - a[n]).double() * (other[n] - a[n]).double()).sum()) for n in names)

    length, along = inner(b, b) ** 0.5, inner(b, c) / inner(b, b) ** 0.5
    across = (inner(c, c) - along**2) ** 0.5
    own = rows[(rows["key"] == stage.key) & (rows["split"] == "test")]
    corners = own.dropna(subset="corner")
    assert corners["x"].tolist() == pytest.approx([0, length, along], rel=1e-4)
    assert corners["y"].tolist() == pytest.approx([0, 0, across], rel=1e-4)
    grid = own[own["corner"].isna()]
    assert grid["loss"].nunique() > 5
    for point in grid.itertuples():
        third = point.y / across
        second = (point.x - third * along) / length
        mixed = {n: (1 - second - third) * a[n] + second * b[n] + third * c[n] for n in a if a[n].is_floating_point()}
        mixed = {n: t.clamp(min=0) if n.endswith("running_var") else t for n, t in mixed.items()}
        network.load_state_dict({**a, **mixed})
        loss, accuracy, _ = evaluate(network, context.test)
        assert point.loss == pytest.approx(loss, rel=1e-3)
        assert point.error == pytest.approx(100 - accuracy, abs=1.2)


def test_a_plane_is_orthonormal_and_contains_its_three_networks():
    torch.manual_seed(0)
    states = [
        {"w": torch.randn(7, 5), "b": torch.randn(5), "n.running_var": torch.rand(5), "n": torch.tensor(i)} for i in range(3)
    ]
    plane = Plane(*states, coordinates_of=["w", "b"])
    for state, corner in zip(states, plane.corners, strict=True):
        found = plane.at(*corner)
        assert all(torch.allclose(found[name], state[name], atol=1e-5) for name in ("w", "b", "n.running_var"))
        assert int(found["n"]) == 0

    def flat(x, y):
        return torch.cat([plane.at(x, y)[name].flatten() for name in ("w", "b")]).double()

    one, other = flat(1, 0) - flat(0, 0), flat(0, 1) - flat(0, 0)
    assert float(one.norm()) == pytest.approx(1, abs=1e-5)
    assert float(other.norm()) == pytest.approx(1, abs=1e-5)
    assert float(one @ other) == pytest.approx(0, abs=1e-5)
    assert (plane.at(-100, -100)["n.running_var"] >= 0).all(), "no variance is negative"
    with pytest.raises(ValueError, match="lie on one line"):
        Plane(states[0], states[1], interpolate(states[0], states[1], 0.3), coordinates_of=["w", "b"])


def test_overlaps_are_those_of_a_plain_count(finished):
    plan, store, run = finished
    context = make_context(store, load_data(plan.config.data))
    rows = load_masks(run.folder)
    own = {s.labels["replicate"]: s for s in stages(plan, "imp", network="B", landing=True)}
    assert len(own) == 2, "B is pruned, too"
    for stage in stages(plan, "overlap"):
        found = rows[rows["key"] == stage.key]
        mask = load_mask(context, stage.parents["a"])
        masks = {"A": mask, "pi(A)": permutation_of(stage, context).apply_mask(mask)}
        assert stage.parents["b"] == own[stage.labels["replicate"]].key
        masks["B"] = load_mask(context, stage.parents["b"])
        for row in found.itertuples():
            layers = list(mask) if row.layer == "all" else [row.layer]
            one = torch.cat([masks[row.mask][layer].flatten() for layer in layers])
            if pd.isna(row.other):
                assert row.density == pytest.approx(float(one.double().mean()))
                dead = sum(int((masks[row.mask][layer].flatten(1).sum(1) == 0).sum()) for layer in layers)
                assert row.pruned_units == dead
            else:
                other = torch.cat([masks[row.other][layer].flatten() for layer in layers])
                assert row.jaccard == pytest.approx(float((one & other).sum() / (one | other).sum()))
        together = found[found["layer"] == "all"]
        assert together.loc[together["mask"].eq("pi(A)") & together["other"].isna(), "density"].item() == pytest.approx(
            0.5, abs=1e-3
        )
        assert len(together) == 6, "three masks, three pairs"


def test_an_early_match_leaves_its_barrier_to_the_trained_b(finished):
    plan, _, _ = finished
    trained = {s.labels["replicate"]: s.key for s in stages(plan, "dense", network="B")}
    lines = stages(plan, "connect", between="pi(A) - B")
    assert {s.labels["match_epoch"] for s in lines} == {1, 2}
    assert all(s.parents["b"] == trained[s.labels["replicate"]] for s in lines)
    early = make_plan(tiny_sweep(**{**SWEEP, "match": {"epochs": [1, 2]}}, connect=LINE))
    trained = {s.labels["replicate"]: s.key for s in stages(early, "dense", network="B")}
    assert all(s.parents["b"] == trained[s.labels["replicate"]] for s in stages(early, "connect"))


def test_matches_from_less_are_planned_beside_the_one_that_carries_the_mask(finished):
    plan, _, run = finished
    rows = load_permutations(run.folder)
    first = rows.drop_duplicates(["replicate", "match_samples", "match_epoch"])
    assert sorted(zip(first["match_samples"], first["match_epoch"], strict=True)) == sorted(
        2 * [(20, 2), (100, 2), (200, 1), (200, 2)]
    )
    barriers = load_barriers(run.folder)
    matched = barriers[barriers["between"] == "pi(A) - B"]
    assert set(matched["match_samples"]) == {20, 100, 200}
    assert {s.parents["permutation"] for s in stages(plan, "sparse", arm="permuted")} == {
        s.key for s in stages(plan, "match", match_samples=200, match_epoch=2)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": [{"between": ["A", "C"]}]}, r"'C' is none of A, B, imp"),
        ({"lines": [{"between": ["A", "pi(A"]}]}, r"is none of A, B, imp"),
        ({"lines": [{"between": ["A", "random"]}]}, r"analyses.lines.0.between: random is not among sparse.arms"),
        ({"lines": [{"between": ["A", "B"], "rewind": 7}]}, r"analyses.lines.0.rewind: 7 is not in sparse.rewinds"),
        ({"planes": [{"resolution": 1}]}, r"greater than or equal to 2"),
        ({"planes": [{"through": ["A", "A", "B"]}]}, r"analyses.planes.0.through: A is listed twice"),
        ({"match_quality": {"epochs": [3]}}, r"analyses.match_quality.epochs: 3 is beyond dense.epochs = 2"),
    ],
)
def test_an_analysis_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_sweep(**SWEEP, analyses=changes)


def test_pi_needs_a_match_to_the_trained_b():
    early = {**SWEEP, "match": {"epochs": [1]}}
    through = ["A", "lth", "pi^-1(permuted)"]
    for analyses in ({"planes": [{"through": through}]}, {"overlap": {}}, {"lines": [{"between": ["pi(A)", "B"]}]}):
        with pytest.raises(ValueError, match=r"needs a match at T = 2, which is not in match.epochs"):
            tiny_sweep(**early, analyses=analyses)


def test_a_network_that_no_arm_needs_is_not_made_for_an_analysis():
    sparse = {**SWEEP["sparse"], "arms": ["lth"]}
    with pytest.raises(ValueError, match=r"analyses.lines.0.between: this sweep trains no network 'B'"):
        make_plan(tiny_sweep(**{**SWEEP, "sparse": sparse}, analyses={"lines": [{"between": ["A", "B"]}]}))
    more = make_plan(tiny_sweep(**SWEEP, analyses={"match_quality": {"samples": [999]}}))
    assert {s.labels["match_samples"] for s in stages(more, "match")} == {200}, "more than there are is all"


def test_what_is_left_open_is_measured_where_the_sweep_has_it():
    asked = {"lines": [{}], "planes": [{}]}
    plan = make_plan(tiny_sweep(**SWEEP, analyses=asked))
    assert {s.labels["between"] for s in stages(plan, "connect")} == {"lth - pi^-1(permuted)"}
    assert {s.labels["between"] for s in stages(plan, "plane")} == {"A, lth, pi^-1(permuted)"}
    for changes in ({"sparse": {**SWEEP["sparse"], "arms": ["lth"]}}, {"match": {"epochs": [1]}}):
        plan = make_plan(tiny_sweep(**{**SWEEP, **changes}, analyses=asked))
        assert not {"plane", "connect"} & {s.kind for s in plan.stages}


def test_the_line_without_a_permutation_stands_beside_the_one_with_it():
    plan = make_plan(tiny_sweep(**SWEEP, connect={**LINE, "unmatched": True}))
    trained = {(s.labels["network"], s.labels["replicate"]): s.key for s in stages(plan, "dense")}
    for stage in stages(plan, "connect", between="A - B"):
        number = stage.labels["replicate"]
        assert stage.parents == {"a": trained["A", number], "b": trained["B", number]}
    assert {s.labels["between"] for s in stages(plan, "connect")} == {"A - B", "pi(A) - B"}


def test_a_match_by_weights_takes_no_samples():
    weights_first = {**SWEEP, "match": {"epochs": [2], "method": ["weight"]}}
    with pytest.raises(ValueError, match=r"analyses.match_quality.samples: matching by weight, .* takes no samples"):
        make_plan(tiny_sweep(**weights_first, analyses={"match_quality": {"samples": [100]}}))
