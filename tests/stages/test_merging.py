"""The analysis `merge`: the networks of all replicates, averaged in one order of units."""

import copy
from functools import reduce

import pytest
import torch
from pydantic import ValidationError

from raylth.core.interpolate import average
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec, random_permutation
from raylth.core.training.loop import evaluate
from raylth.driver.run_record import Run
from raylth.report import load_measurements, write_report
from raylth.stages import load_data, make_context, make_plan, result_rows, run_plan
from raylth.stages.endpoints import load_universe
from raylth.stages.merging import merged_network
from raylth.stages.symmetry import symmetry_of
from raylth.stages.training import load_network
from raylth.store import Store
from tests.conftest import tiny_sweep

MERGE = {"networks": ["permuted", "lth", "B"], "samples": 120}
SWEEP = {
    "data": {"name": "digits", "num_train": 200, "num_test": 90},
    "seeds": {"replicates": 3},
    "model": {"name": "resnet20", "widths": [0.25]},
    "dense": {"epochs": 2},
    "match": {"method": "weight", "epochs": [2]},
    "sparse": {"arms": ["lth", "permuted"], "sparsities": [0.5], "rewinds": [1]},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny_sweep(**SWEEP, analyses={"custom": {"merge": MERGE}, "ensemble": {"members": 3, "sets": ["imp"]}})
    plan, store = make_plan(config), Store(tmp_path_factory.mktemp("store"))
    graph = run_plan(plan, store)
    assert not graph.errors
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return plan, store, run


def test_rows_are_those_of_networks_averaged_by_hand(finished):
    """Each arm in the order of units of the dense network that its weights are from; however its mask was carried."""
    plan, store, run = finished
    context = make_context(store, load_data(plan.config.data))
    (stage,) = (s for s in plan.stages if s.kind == "analysis")
    (universe,) = (s for s in plan.stages if s.kind == "universe")
    frame = load_measurements(run.folder, "merge")
    assert len(frame) == 3 * (2 + 2 * 3)
    members = {number: universe.parents[str(number)] for number in range(6)}
    dense = {s.key: s.labels for s in plan.stages if s.kind == "dense"}
    networks = {
        name: [load_network(stage.settings.model, context, stage.parents[f"{name} {n}"]) for n in range(3)]
        for name in MERGE["networks"]
    }
    permutations = load_universe(universe.key, symmetry_of(stage.settings.model, networks["B"][0], context), context)
    for name, found in networks.items():
        rows = frame[frame["network"] == name].set_index(["what", "correction"], drop=False)
        of, states = ("A" if name == "lth" else "B"), []
        for replicate, network in enumerate(found):
            place = stage.settings.places[f"{name} {replicate}"]
            home = dense[members[place]]
            assert (home["network"], home["replicate"]) == (of, replicate)
            states.append(permutations[place].apply(network.state_dict()))
        scores = [evaluate(network, context.test, 500) for network in found]
        row = rows[rows["what"] == "members"].iloc[0]
        assert row["test_accuracy"] == pytest.approx(sum(score.accuracy for score in scores) / 3)
        assert row["test_loss"] == pytest.approx(sum(score.loss for score in scores) / 3, rel=1e-4)
        for what, ends in (("merged", states), ("merged, not permuted", [each.state_dict() for each in found])):
            merged = copy.deepcopy(found[0])
            sums = {
                key: reduce(torch.add, [end[key] for end in ends]) / 3 for key in ends[0] if ends[0][key].is_floating_point()
            }
            merged.load_state_dict({**ends[0], **sums})
            score = evaluate(merged, context.test, 500)
            assert rows.loc[(what, "plain"), "test_accuracy"] == pytest.approx(score.accuracy)
            assert rows.loc[(what, "plain"), "test_loss"] == pytest.approx(score.loss, rel=1e-3)
        inputs = torch.cat([x for x, _ in context.test.batches(100)])
        with torch.no_grad():
            together = sum(network.eval()(inputs).double().softmax(1) for network in found)
        right = (together.argmax(1) == context.test.y).double().mean()
        assert rows[rows["what"] == "ensemble"].iloc[0]["test_accuracy"] == pytest.approx(100 * float(right))
        (sparse, whole) = (rows[rows["what"] == what].iloc[0]["density"] for what in ("members", "merged"))
        assert sparse == whole == 1 if name == "B" else sparse < whole < 1


def test_the_report_has_a_table_and_a_figure_of_it(finished):
    _, _, run = finished
    page = write_report(run.folder, run.folder / "report").read().decode()
    assert "one network with the mean of their weights" in page
    table = (run.folder / "report/tables/analysis_merge.csv").read().decode().splitlines()
    assert table[0].endswith("network,members,what,correction,density,train_accuracy,train_loss,test_accuracy,test_loss")
    assert len(table) == 1 + 3 * 8
    assert any(name.startswith("analysis_merge") for name in (run.folder / "report/figures").names())


@pytest.mark.parametrize("correction", ["plain", "reset", "repair"])
def test_permuted_copies_of_one_network_merge_to_it(correction, tmp_path):
    context = make_context(Store(tmp_path), load_data(tiny_sweep(**SWEEP).data))
    network = init_model(0, "resnet20", width=0.25, num_classes=10, in_shape=context.train.in_shape).eval()
    spec = derive_spec(network, context.train.probe(2))
    planted = [random_permutation(spec, seed) for seed in range(3)]
    copies = [each.apply(network.state_dict()) for each in planted]
    back = [each.inverse().apply(state) for each, state in zip(planted, copies, strict=True)]
    merged, scrambled = (merged_network(network, states, correction, context.train).eval() for states in (back, copies))
    if correction == "reset":  # other statistics than the network's own
        network = merged_network(network, [network.state_dict()], correction, context.train).eval()
    x = context.test.probe(50)
    with torch.no_grad():
        expected, found, other = (each(x) for each in (network, merged, scrambled))
    scale = float(expected.std())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * scale)
    assert float((other - expected).std()) > 0.2 * scale, "without the permutations it is another function"


def test_a_mean_is_that_of_all_states_and_checks_them():
    states = [{"w": torch.full((2,), float(value)), "n": torch.tensor(value)} for value in (1, 2, 6)]
    found = average(states)
    assert found["w"].tolist() == [3.0, 3.0]
    assert int(found["n"]) == 1
    with pytest.raises(ValueError, match="w: A has shape"):
        average([states[0], {"w": torch.zeros(3), "n": torch.tensor(1)}])
    with pytest.raises(ValueError, match="one network or more"):
        average([])


@pytest.mark.parametrize(
    ("merge", "replicates", "message"),
    [
        ({"networks": ["pi(A)"]}, 2, r"merge.networks: pi\(A\): all are moved to one order of units: should be A"),
        ({"networks": ["naive"]}, 2, r"merge.networks: naive is not among sparse.arms"),
        ({"method": "weight"}, 2, "weight matches pairs of networks: should be a matcher of all at once, such as c2m3"),
        ({"corrections": ["reset", "reset"]}, 2, "'reset' is listed twice"),
        ({}, 1, "analyses.custom.merge: needs the networks of two replicates or more, and seeds.replicates is 1"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_is_trained(merge, replicates, message):
    with pytest.raises((ValidationError, ValueError), match=message):
        make_plan(tiny_sweep(**{**SWEEP, "seeds": {"replicates": replicates}}, analyses={"custom": {"merge": merge}}))


def test_tickets_alone_are_merged_in_the_order_of_the_as():
    """A sweep that trains no B: the universe is that of the As."""
    sparse = {**SWEEP["sparse"], "arms": ["lth"]}
    plan = make_plan(tiny_sweep(**{**SWEEP, "sparse": sparse}, analyses={"custom": {"merge": {"networks": ["lth"]}}}))
    (universe,) = (s for s in plan.stages if s.kind == "universe")
    assert list(universe.parents.values()) == [s.key for s in plan.stages if s.kind == "dense"]
