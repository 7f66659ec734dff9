"""What the pages of docs/extending/ promise: each of their examples, in a folder of one's own, is part of a whole sweep."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from raylth.analyses import ANALYSES
from raylth.arms import ARMS
from raylth.cli.sweep import main
from raylth.config.load import BadSweep, read_sweep
from raylth.config.sweep import SweepConfig
from raylth.config.tracking import TRACKERS
from raylth.core.masks import num_alive
from raylth.core.matching import MATCHERS
from raylth.core.pruning import FINDERS, num_landing_alive
from raylth.report import load_measurements, load_permutations, load_results
from raylth.stages import make_plan, result_rows, run_plan
from raylth.store import Store
from tests.conftest import ONE_CPU, tiny_sweep

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs" / "extending").glob("*.md"))
MODULES = {
    name: code
    for page in PAGES
    for name, code in re.findall(r"```python\n# (own_\w+)\.py\n(.*?)```", page.read_text(), re.DOTALL)
}
SETTINGS = [
    yaml.safe_load(block) for page in PAGES for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
]
BROKEN = """
from raylth.analyses import Analysis
from raylth.config.analyses import NetworksConfig
from raylth.config.tracking import Tracker
from raylth.config.types import Settings
from raylth.core.matching import Matcher
from raylth.core.pruning import MaskFinder


def changes(network, inputs):
    next(network.parameters()).data.zero_()
    return FINDERS["oneshot"].find(network, inputs)


def refuses(settings, sweep, run):
    raise OSError("no server there")


from raylth.core.pruning import FINDERS

everything = MaskFinder(lambda network, inputs: inputs.mask, "keeps all")
fewer = MaskFinder(lambda network, inputs: {"fc1.weight": inputs.mask["fc1.weight"]}, "one layer")
numbers = MaskFinder(lambda network, inputs: {name: alive.float() for name, alive in inputs.mask.items()}, "no bools")
changing = MaskFinder(changes, "changes the network")
nothing = Matcher(lambda a, b, spec, inputs: None, "returns nothing")
strange = Analysis(lambda networks, settings, inputs: [{"x": object()}], NetworksConfig, "no number")
no_rows = Analysis(lambda networks, settings, inputs: [3], NetworksConfig, "no row")
no_settings = Analysis(lambda networks, settings, inputs: [], dict, "settings of another kind")
closed = Tracker(open=refuses, settings=Settings)
no_tracker = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder outside the repository with the modules of the pages, from which a sweep is started."""
    for name, code in {**MODULES, "own_broken": BROKEN}.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]
    for registry in (ARMS, ANALYSES, FINDERS, MATCHERS, TRACKERS):
        registry._found.clear()


def merged(*parts):
    """Join the YAML of the pages; lists of one key are joined."""
    found = {}
    for part in parts:
        for key, value in part.items():
            before = found.get(key)
            if isinstance(before, dict):
                found[key] = merged(before, value)
            elif isinstance(before, list):
                found[key] = list(dict.fromkeys([*before, *value]))
            else:
                found[key] = value
    return found


def test_the_pages_dynamic_finder_finds_a_mask_while_a_is_trained(own, tmp_path):
    asked = {"finder": "own_dynamic_finders:steady", "updates": {"every": 5}}
    config = tiny_sweep(mask=asked, match={"epochs": [4]}, sparse={"arms": ["lth", "permuted"], "sparsities": [0.5]})
    plan, store = make_plan(config), Store(tmp_path / "store")
    assert not run_plan(plan, store).errors
    (found,) = [stage for stage in plan.stages if stage.kind == "dynamic"]
    mask = store.tensors(found.key, "mask")
    total = sum(alive.size for alive in mask.values())
    assert sum(int(alive.sum()) for alive in mask.values()) == num_landing_alive(total, 0.5)
    assert found.settings.code, "the page's code is in the key"


def test_the_pages_examples_together_are_a_sweep_and_its_report(own):
    """Started from the command line, on Ray: an arm, a finder, a matcher, an analysis and a tracker in one."""
    named = {"own_arms", "own_finders", "own_dynamic_finders", "own_matchers", "own_analyses", "own_trackers"}
    assert set(MODULES) == named
    small = tiny_sweep(data={"num_train": 200, "num_test": 50}).model_dump(mode="json", exclude_defaults=True)
    asked = merged(*SETTINGS, {"seeds": {"replicates": 2}})
    asked["sparse"] |= {"sparsities": [0.5], "rewinds": [1]}
    asked["match"]["epochs"] = [small["dense"]["epochs"]]
    (own / "own.yaml").write_text(yaml.safe_dump(merged({**small, "sparse": {}}, asked, {"storage": "store"})))
    words = [sys.executable, "-m", "raylth.sweep", "own.yaml"]
    environment = os.environ | ONE_CPU
    done = subprocess.run(words, cwd=own, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flipped" in done.stdout
    results = load_results(own / "store")
    assert (results["status"] == "done").all()
    assert {"own_arms:flipped", "own_arms:inverse"} <= set(results["arm"].dropna())
    found = results[results["stage"] == "find"]
    assert len(found) == 2
    assert "imp" not in set(results["stage"])
    permutations = load_permutations(own / "store")
    assert "own_matchers:incoming" in set(permutations["match_method"])
    (run,) = (own / "store/runs").iterdir()
    frame = load_measurements(run, "own_analyses:sharpness")
    assert list(frame["network"]) == ["lth", "permuted", "naive"] * 2
    assert frame["rise"].notna().all()
    page = (run / "report/report.html").read_text()
    for shown in ("sharpness", "flipped", "own_matchers:incoming", "Training loss (nats), and how much it rises"):
        assert shown in page, shown
    assert (run / "report/figures/analysis_own_analyses_sharpness.svg").exists()
    assert "rise (sd)" in (run / "report/tables/analysis_own_analyses_sharpness.csv").read_text()
    tracked = [json.loads(file.read_text()) for file in (own / "networks").rglob("*.json")]
    assert {network["arm"] for network in tracked if "arm" in network} == set(results["arm"].dropna())


def test_a_finder_of_ones_own_is_used_as_it_says(own, tmp_path):
    config = tiny_sweep(
        mask={"finder": "own_finders:layerwise"}, sparse={"arms": ["lth"], "sparsities": [0.5, 0.8], "rewinds": [0]}
    )
    plan, store = make_plan(config), Store(tmp_path / "store")
    assert not run_plan(plan, store).errors
    for stage in (stage for stage in plan.stages if stage.kind == "find"):
        mask = {name: torch.tensor(alive) for name, alive in store.tensors(stage.key, "mask").items()}
        total = sum(alive.numel() for alive in mask.values())
        assert num_alive(mask) == num_landing_alive(total, stage.settings.sparsity)
        shares = [float(alive.float().mean()) for alive in mask.values()]
        assert max(shares) - min(shares) < 0.01
        weights = store.tensors(stage.parents["network"], "weights")
        for name, alive in mask.items():
            kept, dropped = np.abs(weights[name])[alive], np.abs(weights[name])[~alive]
            assert kept.min() >= dropped.max()


def test_one_shot_pruning_keeps_the_largest_weights_and_needs_no_rounds(tmp_path):
    sparse = {"arms": ["lth"], "sparsities": [0.3, 0.5], "rewinds": [0]}
    plan, store = make_plan(tiny_sweep(mask={"finder": "oneshot"}, sparse=sparse)), Store(tmp_path / "store")
    assert not run_plan(plan, store).errors
    assert plan.count("imp") == 0
    stage = next(stage for stage in plan.stages if stage.kind == "find")
    mask, weights = store.tensors(stage.key, "mask"), store.tensors(stage.parents["network"], "weights")
    kept = np.concatenate([np.abs(weights[name])[alive] for name, alive in mask.items()])
    dropped = np.concatenate([np.abs(weights[name])[~alive] for name, alive in mask.items()])
    assert kept.min() >= dropped.max()


def test_its_code_is_in_the_key_and_no_other_key_is_moved(own):
    def keys(config):
        return {(stage.kind, stage.name): stage.key for stage in make_plan(config).stages}

    def sweep() -> SweepConfig:
        return tiny_sweep(
            match={"method": ["activation", "own_matchers:incoming"], "epochs": [4]},
            analyses={"custom": {"own_analyses:sharpness": {"networks": ["naive"]}}},
            sparse={"arms": ["naive", "permuted"], "sparsities": [0.5], "rewinds": [1]},
        )

    before = keys(sweep())
    for module, was, is_now in (("matchers", "1e-12", "1e-9"), ("analyses", "split.batches(500)", "split.batches(400)")):
        (own / f"own_{module}.py").write_text(MODULES[f"own_{module}"].replace(was, is_now))
    after = keys(sweep())
    moved = {stage for stage in before if before[stage] != after[stage]}
    assert {kind for kind, _ in moved} == {"match", "sparse", "analysis"}
    assert all("own_" in name for kind, name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": {"finder": "own_finders:nothing"}}, "mask.finder: mask finder 'own_finders:nothing' cannot be imported"),
        (
            {"mask": {"finder": "oneshoot"}},
            "mask.finder: unknown mask finder 'oneshoot', did you mean 'oneshot'? (known: erk, gmp, grasp, imp",
        ),
        ({"mask": {"finder": "own_broken:nothing"}}, "is a Matcher, not a raylth.core.pruning.MaskFinder"),
        ({"match": {"method": "own_broken:fewer"}}, "is a MaskFinder, not a raylth.core.matching.Matcher"),
        (
            {"mask": {"finder": "oneshot"}, "analyses": {"imp_line": {}}},
            "analyses.imp_line: needs rounds of pruning, and mask.finder is oneshot",
        ),
        (
            {"mask": {"finder": "oneshot"}, "analyses": {"lines": [{"between": ["A", "imp"]}]}},
            "analyses.lines.0.between: imp is A pruned in rounds",
        ),
        (
            {"mask": {"finder": "oneshot"}, "analyses": {"ensemble": {"sets": ["imp"]}}, "seeds": {"replicates": 2}},
            "analyses.ensemble.sets: imp is A pruned in rounds",
        ),
        ({"analyses": {"custom": {"own_analyses:sharpnes": {}}}}, "analyses.custom.own_analyses:sharpnes: analysis"),
        (
            {"analyses": {"custom": {"own_analyses:sharpness": {"radios": 1}}}},
            "analyses.custom.own_analyses:sharpness.radios: unknown key, did you mean 'radius'? (known: sparsity",
        ),
        (
            {"analyses": {"custom": {"own_analyses:sharpness": {"radius": "wide"}}}},
            "analyses.custom.own_analyses:sharpness.radius: should be a number, found 'wide'",
        ),
        (
            {"analyses": {"custom": {"own_analyses:sharpness": {"networks": ["random"]}}}},
            "analyses.custom.own_analyses:sharpness.networks: random is not among sparse.arms",
        ),
        (
            {"analyses": {"custom": {"own_broken:no_settings": {}}}},
            "its settings are not a subclass of raylth.config.analyses.Netw",
        ),
        ({"log": {"custom": {"own_broken:no_tracker": {}}}}, "is a int, not a raylth.trackers.Tracker"),
        ({"log": {"custom": {"own_trackers:json_files": {"foldr": "x"}}}}, "unknown key, did you mean 'folder'?"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_runs(own, changes, message):
    base = tiny_sweep(sparse={"arms": ["lth", "permuted", "naive"], "sparsities": [0.5], "rewinds": [1]})
    raw = merged(base.model_dump(mode="json", exclude_defaults=True), changes)
    (own / "wrong.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(BadSweep) as error:
        read_sweep(own / "wrong.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert re.match(r".*wrong\.yaml:\d+: ", str(error.value)), "with its line"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mask": {"finder": "own_broken:everything"}},
            r"ValueError: mask finder own_broken:everything: [\d,]+ weights are alive",
        ),
        ({"mask": {"finder": "own_broken:fewer"}}, "TypeError: mask finder own_broken:fewer: expected a mask of the layers"),
        ({"mask": {"finder": "own_broken:numbers"}}, r"fc1\.weight: expected a bool tensor of .* found torch.float32"),
        ({"mask": {"finder": "own_broken:changing"}}, "own_broken:changing: it changed the network: fc1.weight"),
        ({"match": {"method": "own_broken:nothing", "epochs": [4]}}, "TypeError: matcher own_broken:nothing: expected a"),
        (
            {"analyses": {"custom": {"own_broken:strange": {}}}},
            "TypeError: analysis own_broken:strange: 'x': expected a number",
        ),
        ({"analyses": {"custom": {"own_broken:no_rows": {}}}}, "TypeError: analysis own_broken:no_rows: expected rows"),
    ],
)
def test_what_it_returns_that_is_wrong_fails_its_stage_with_one_line(own, tmp_path, changes, message):
    sparse = {"arms": ["lth", "permuted"], "sparsities": [0.5], "rewinds": [1]}
    graph = run_plan(
        make_plan(tiny_sweep(**{"sparse": sparse, "match": {"epochs": [4]}, **changes})), Store(tmp_path / "store")
    )
    errors = set(graph.errors.values())
    assert len(errors) == 1
    assert re.search(message, errors.pop())


def test_a_tracker_that_cannot_be_opened_ends_the_command_before_anything_runs(own, capsys):
    raw = tiny_sweep(log={"custom": {"own_broken:closed": {}}}).model_dump(mode="json", exclude_defaults=True)
    (own / "closed.yaml").write_text(yaml.safe_dump({**raw, "storage": "store"}))
    assert main(["closed.yaml"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "log.custom.own_broken:closed: cannot be opened: OSError: no server there" in told
    assert not list((own / "store").glob("artefacts/*"))


def test_measurements_are_read_where_the_module_is_missing(own, tmp_path):
    """From a store of elsewhere: a table of means, and no figure."""
    from raylth.driver.run_record import Run
    from raylth.report import write_report
    from raylth.store import locate

    sharpness = {"own_analyses:sharpness": {"networks": ["naive"], "directions": 1}}
    sparse = {"arms": ["naive"], "sparsities": [0.5], "rewinds": [1]}
    config = tiny_sweep(analyses={"custom": sharpness}, sparse=sparse)
    plan, store = make_plan(config), Store(tmp_path / "store")
    graph = run_plan(plan, store)
    assert not graph.errors
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    (own / "own_analyses.py").unlink()
    del sys.modules["own_analyses"], ANALYSES._found["own_analyses:sharpness"]
    sys.path_importer_cache.clear()
    page = write_report(run.folder, locate(tmp_path / "report")).read().decode()
    assert "own_analyses:sharpness, which is not on this machine" in page
    assert "rise (sd)" in (tmp_path / "report/tables/analysis_own_analyses_sharpness.csv").read_text()
