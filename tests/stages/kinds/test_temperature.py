"""Lines at fitted temperatures: what they change, what they must leave alone, and where they are shown."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from raylth.core.interpolate import barrier, interpolate, middle_rise
from raylth.core.temperature import cross_fitted
from raylth.driver.run_record import Run
from raylth.report import load_barriers, load_lines, write_report
from raylth.stages import load_data, make_context, make_plan, result_rows, run_plan, run_stage
from raylth.stages.endpoints import load_ends
from raylth.stages.stage import stage_key
from raylth.store import Store
from tests.conftest import tiny_sweep

LINE = {"points": 3, "corrections": ["plain", "reset", "repair"], "samples": 130}
SWEEP = {
    "data": {"name": "digits", "num_train": 256, "num_test": 90},
    "model": {"name": "resnet20", "widths": [0.25]},
    "dense": {"epochs": 4, "batch_size": 64},
    "match": {"epochs": [4]},
    "sparse": {"arms": ["permuted"], "sparsities": [0.5], "rewinds": [1]},
}
HEAD = ("head.weight", "head.bias")
SHOWN = "loss barrier at fitted temperatures, nats"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep without temperatures and one with them, in one store, and their runs."""
    store = Store(tmp_path_factory.mktemp("store"))
    found = []
    for temperature in (False, True):
        config = tiny_sweep(**SWEEP, connect={**LINE, "temperature": temperature})
        plan = make_plan(config)
        graph = run_plan(plan, store)
        assert not graph.errors
        run = Run.open(config, store)
        run.write(result_rows(plan, graph, store, run.name), graph)
        (line,) = (stage for stage in plan.stages if stage.kind == "connect")
        found.append((line, run))
    return store, load_data(config.data), *found


def test_losses_and_errors_are_the_same_to_the_bit(finished):
    store, _, (bare, _), (scaled, _) = finished
    assert bare.key != scaled.key
    own = {"temperature", "scaled_loss", "scaled_loss_barrier", "scaled_loss_mid"}
    for table in ("line", "barriers"):
        one, other = store.metrics(bare.key)[table], store.metrics(scaled.key)[table]
        assert not any(own & set(row) for row in one)
        assert all(own & set(row) for row in other)
        assert [{name: value for name, value in row.items() if name not in own} for row in other] == one


def test_what_is_measured_is_what_a_plain_loop_finds(finished):
    store, data, _, (line, _) = finished
    context = make_context(store, data)
    a, b = load_ends(line, context)
    points = {(p["correction"], p["split"], p["alpha"]): p for p in store.metrics(line.key)["line"]}
    b.eval().load_state_dict(interpolate(a.state_dict(), b.state_dict(), 0.5))
    for name, split in (("train", context.train.take(130)), ("test", context.test)):
        with torch.no_grad():
            logits = torch.cat([b(x) for x, _ in split.batches(1000)])
        point = points["plain", name, 0.5]
        temperature, loss = cross_fitted(logits, split.y)
        assert point["temperature"] == pytest.approx(temperature, rel=1e-4)
        assert point["scaled_loss"] == pytest.approx(loss, rel=1e-4)
        assert point["loss"] == pytest.approx(F.cross_entropy(logits, split.y).item(), rel=1e-4)
    for row in store.metrics(line.key)["barriers"]:
        losses = [points[row["correction"], row["split"], alpha]["scaled_loss"] for alpha in (0, 0.5, 1)]
        assert row["scaled_loss_barrier"] == pytest.approx(barrier(losses, [0.0, 0.5, 1.0]))
        assert row["scaled_loss_mid"] == pytest.approx(middle_rise(losses, [0.0, 0.5, 1.0]))


def test_a_network_and_itself_with_other_logits_have_a_flat_line(finished):
    """The head times 5: all that changes along the line is the scale of the logits."""
    store, data, _, (line, _) = finished
    weights = dict(store.tensors(line.parents["b"], "weights"))
    for name in HEAD:
        weights[name] = 5 * weights[name]
    key = "5" * 64
    store.publish(key, kind="dense", tensors={"weights": weights}, metrics=store.metrics(line.parents["b"]))
    parents = {"a": line.parents["b"], "b": key}
    settings = dataclasses.replace(line.settings, corrections=("plain", "reset"))
    planted = dataclasses.replace(line, settings=settings, parents=parents, key=stage_key("connect", settings, parents))
    run_stage(planted, make_context(store, data))
    points = store.metrics(planted.key)["line"]
    for correction in ("plain", "reset"):
        for split in ("train", "test"):
            (first, middle, last) = (p for p in points if (p["correction"], p["split"]) == (correction, split))
            assert abs(last["loss"] - first["loss"]) > 0.02
            assert first["scaled_loss"] == pytest.approx(last["scaled_loss"], rel=1e-4)
            assert middle["scaled_loss"] == pytest.approx(last["scaled_loss"], rel=1e-4)
            assert middle["temperature"] == pytest.approx(3 * first["temperature"], rel=1e-4)
            assert last["temperature"] == pytest.approx(5 * first["temperature"], rel=1e-4)
            assert first["error"] == middle["error"] == last["error"]


def test_no_network_runs_more_often_for_its_temperature(finished):
    store, data, (bare, _), (scaled, _) = finished
    passes = []
    for stage in (bare, scaled):
        calls = []
        hook = torch.nn.modules.module.register_module_forward_hook(lambda *_, calls=calls: calls.append(0))
        try:
            run_stage(dataclasses.replace(stage, key="6" * 63 + str(len(passes))), make_context(store, data))
        finally:
            hook.remove()
        passes.append(len(calls))
    assert passes[0] == passes[1] > 0


def test_infinite_logits_have_no_temperature_and_fail_nothing(finished):
    store, data, _, (line, _) = finished
    test_x = data.test_x.astype("float32")
    test_x[0] = 3e38
    stage = dataclasses.replace(line, key="7" * 64)
    context = make_context(store, dataclasses.replace(data, test_x=test_x), data_sha256=data.fingerprint())
    run_stage(stage, context)
    metrics = store.metrics(stage.key)
    for point in metrics["line"]:
        assert (point["temperature"] is None) == (point["scaled_loss"] is None) == (point["split"] == "test")
    for row in metrics["barriers"]:
        assert ("scaled_loss_barrier" in row) == (row["split"] == "train")


def test_tables_and_the_report_have_them_where_they_are_asked_for(finished):
    _, _, (_, bare), (_, scaled) = finished
    for run, is_asked in ((bare, False), (scaled, True)):
        lines, barriers = load_lines(run.folder), load_barriers(run.folder)
        for frame, columns in (
            (lines, ["temperature", "scaled_loss"]),
            (barriers, ["scaled_loss_barrier", "scaled_loss_mid"]),
        ):
            assert frame[columns].notna().all().all() == is_asked
            assert frame[columns].isna().all().all() != is_asked
        page = write_report(run.folder, run.folder / "report").read().decode()
        assert (SHOWN in page) == is_asked
        assert ("is miscalibration of the points" in page) == is_asked
        csv = (run.folder / "report" / "tables" / "barriers.csv").read().decode()
        assert ("scaled_loss_barrier_low" in csv) == is_asked
    barriers = load_barriers(scaled.folder)
    (row,) = barriers[(barriers["split"] == "test") & (barriers["correction"] == "plain")].to_dict("records")
    assert f">{row['scaled_loss_barrier']:.3f}<" in page
    assert not math.isclose(row["scaled_loss_barrier"], row["loss_barrier"], rel_tol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connect": {"temperature": True, "samples": 1}}, r"connect.temperature: needs at least 2 training samples"),
        ({"connect": {"temperature": True}, "data": {"num_test": 1}}, r"connect.temperature: needs at least 2 test samples"),
        ({"connect": {"temperature": True}, "data": {"holdout": 1}}, r"connect.temperature: needs at least 2 test samples"),
        ({"analyses": {"imp_line": {"temperature": True, "samples": 1}}}, r"analyses.imp_line.temperature: needs at least 2"),
        ({"analyses": {"lines": [{"temperature": True, "samples": 1}]}}, r"analyses.lines.0.temperature: needs at least 2"),
        (
            {"analyses": {"match_quality": {"line": {"temperature": True, "samples": 1}}}},
            r"analyses.match_quality.line.temperature: needs at least 2",
        ),
    ],
)
def test_a_split_that_has_no_two_halves_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_sweep(**changes)
    assert tiny_sweep(**json.loads(json.dumps(changes).replace("true", "false"))), "without temperatures it is none of these"
