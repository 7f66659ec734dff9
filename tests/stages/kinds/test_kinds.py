"""Guards of every kind of stage: its key, and that what it computes hangs on the key alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.pruning import prune_global_magnitude
from raylth.stages import KINDS, load_data, make_context, make_plan, result_rows, run_plan, run_stage
from raylth.store import Store, fingerprint
from tests.conftest import tiny_sweep

LINE = {"points": 3, "corrections": ["plain", "reset", "repair"], "samples": 60}
EVERYTHING = {  # a sweep with every kind of stage but `mask`
    "seeds": {"replicates": 2},
    "match": {"method": ["activation", "weight"], "epochs": [4]},
    "connect": LINE,
    "analyses": {
        "ensemble": {"members": 2},
        "imp_line": LINE,
        "lines": [{**LINE, "between": ["lth", "pi^-1(permuted)"]}],
        "planes": [{"resolution": 3, "samples": 60}],
        "overlap": {},
        "match_quality": {"samples": [100], "line": LINE},
    },
    "sparse": {
        "arms": ["lth", "permuted", "naive", "random", "random_permutation"],
        "sparsities": [0.3, 0.5],
        "rewinds": [1],
    },
}

# The identity of results that are on people's disks. If one of these changes, every store is recomputed: do that on
# purpose only, by raising VERSION in raylth/stages/stage.py, and pin the new keys here.
GOLDEN = {
    "dense": "c64dd303495a476b",
    "imp": "6a87c66f37534439",
    "mask": "3bd441e68fce996c",
    "universe": "6656ef696b96c61e",
    "match": "d31c9d73960071db",
    "sparse": "467b2d818b353dfe",
    "connect": "cfce7709e0d01392",
    "plane": "b76df10f17f27ff4",
    "overlap": "bd0a9ad8fed742bb",
    "ensemble": "0a734fa4b08773c7",
    "find": "69e9a89e04eb90f4",
    "analysis": "4f155ffe861aa34d",
    "dynamic": "8fc7cc5ea9acc5a8",
}


class Unread(dict):
    """Labels that nobody may look at."""

    def fail(self, *arguments):
        pytest.fail("a stage read a label, which is no part of its key")

    __getitem__ = get = items = keys = values = __iter__ = __contains__ = fail


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """A sweep of everything, one with a mask from elsewhere, two of other finders, one with an analysis of one's own, and one
    that matches all networks at once and merges them."""
    folder = tmp_path_factory.mktemp("masks")
    network = init_model(0, "mlp", width=0.25, num_classes=10, in_shape=(40,))
    weights = {name: torch.arange(t.numel()).sin().reshape(t.shape) for name, t in network.state_dict().items()}
    mask = prune_global_magnitude(weights, full_mask(network), fraction=0.5)
    save_file({name: alive.to(torch.uint8) for name, alive in mask.items()}, folder / "m.safetensors")
    elsewhere = {
        "arms": ["naive", "permuted"],
        "sparsities": [0.5],
        "rewinds": [1],
        "mask_from": str(folder / "m.safetensors"),
    }
    found = {
        "mask": {"finder": "oneshot"},
        "analyses": {"custom": {"tests.stages.kinds.own_analysis:norms": {"networks": ["lth", "pi(A)"]}}},
    }
    together = {
        "match": {"method": "c2m3", "epochs": [2, 4]},
        "sparse": {"arms": ["lth", "permuted"], "sparsities": [0.5], "rewinds": [1]},
        "analyses": {"custom": {"merge": {"samples": 60}}},
    }
    return [
        make_plan(tiny_sweep(**EVERYTHING)),
        make_plan(tiny_sweep(sparse=elsewhere, match={"epochs": [4]})),
        make_plan(tiny_sweep(**found, match={"epochs": [4]})),
        make_plan(tiny_sweep(mask={"finder": "rigl", "updates": {"every": 5}}, match={"epochs": [4]})),
        make_plan(tiny_sweep(**together, seeds={"replicates": 2})),
    ]


def test_golden_keys_of_every_kind(plans):
    keys: dict[str, set[str]] = {}
    for number, plan in enumerate(plans):
        for stage in plan.stages:
            if number < 2 or stage.kind in {2: ("find", "analysis"), 3: ("dynamic",), 4: ("universe",)}[number]:
                keys.setdefault(stage.kind, set()).update(stage.produces)
    assert set(keys) == set(KINDS)
    assert {kind: fingerprint(sorted(found))[:16] for kind, found in keys.items()} == GOLDEN, "in any order"


def test_no_stage_reads_a_label(plans, tmp_path):
    """Labels say how a row is called; two sweeps may call one network differently, and it is computed once."""
    for number, plan in enumerate(plans):
        named, unnamed = Store(tmp_path / f"named{number}"), Store(tmp_path / f"unnamed{number}")
        graph = run_plan(plan, named)
        assert not graph.errors
        context = make_context(unnamed, load_data(plan.config.data), evaluate_every=plan.config.log.evaluate_every)
        for stage in plan.stages:
            run_stage(replace(stage, labels=Unread()), context)
            for key in stage.produces:
                for name in named.files(key):
                    np.testing.assert_array_equal(named.read(key, name), unnamed.read(key, name), err_msg=stage.name)
                one, other = ({**store.metrics(key), "seconds": 0} for store in (named, unnamed))
                assert one == other, stage.name


def test_rows_name_the_corners_of_planes(plans, tmp_path):
    """Also those of stores that hold the names themselves."""
    plan, store = plans[0], Store(tmp_path)
    (plane, *_) = (stage for stage in plan.stages if stage.kind == "plane")
    points = [{"corner": corner, "split": "test", "x": 0.0, "y": 0.0} for corner in ("a", "b", "c", None, "pi^-1(permuted)")]
    store.publish(plane.key, kind="plane", tensors={}, metrics={"points": points})
    graph = run_plan(replace(plan, stages=()), store)
    graph.stages[plane.key], graph.states[plane.key] = plane, "done"
    rows = result_rows(plan, graph, store, "run", [plane.key])["planes"]
    assert [row["corner"] for row in rows] == ["A", "lth", "pi^-1(permuted)", None, "pi^-1(permuted)"]
