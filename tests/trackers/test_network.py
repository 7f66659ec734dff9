"""Which networks are recorded by trackers, and with what."""

from dataclasses import replace

from raylth.stages import Graph, result_rows
from raylth.trackers import networks


def test_what_was_trained_is_recorded_and_nothing_else(finished, trained):
    plan, _, _ = finished
    assert [network.key for network in trained] == [stage.key for stage in plan.stages if stage.epochs]
    for network in trained:
        stage = next(stage for stage in plan.stages if stage.key == network.key)
        assert f"{network.kind}({network.name})" == stage.name
        assert len(network.curve) == stage.epochs == network.final["epochs"]
        assert None not in [*network.labels.values(), *network.final.values()]
        recipe = stage.settings.recipe
        labels = [network.labels[name] for name in ("epochs", "lr", "batch_size", "optimizer")]
        assert labels == [recipe.epochs, recipe.lr, recipe.batch_size, "sgd"]


def test_a_supplied_mask_is_no_network(finished):
    plan, store, graph = finished
    rows = result_rows(plan, graph, store, "tiny-00000000")
    assert networks(rows, Graph(replace(stage, epochs=0) for stage in plan.stages)) == []


def test_a_network_that_diverged_is_recorded_with_its_reason_and_one_that_failed_is_not(finished):
    plan, store, _ = finished
    diverged, failed = [stage for stage in plan.stages if stage.epochs][-2:]
    graph = Graph(plan.stages)
    graph.diverge(diverged.key, "the loss is nan")
    graph.fail(failed.key, "RuntimeError: no")
    rows = result_rows(plan, graph, store, "tiny-00000000")
    assert len(rows["results"]) == 2
    (network,) = networks(rows, graph)
    assert network.key == diverged.key
    assert (network.final["status"], network.final["error"]) == ("diverged", "the loss is nan")
