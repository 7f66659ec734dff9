"""Extensions that are wrong or are named unluckily: each is one line where it is noticed, and never another's result."""

import re
import sys

import numpy as np
import pytest

from raylth.analyses import ANALYSES
from raylth.arms import ARMS, Arm
from raylth.config.analyses import parse_end
from raylth.config.resources import ResourcesConfig
from raylth.core.matching import MATCHERS
from raylth.core.pruning import FINDERS
from raylth.driver.run_record import Run
from raylth.export.model_card import card
from raylth.export.stored_network import find_network
from raylth.report import load_measurements, load_permutations, results, write_report
from raylth.report.results import load_arms, load_manifest
from raylth.stages import make_plan, result_rows, run_plan
from raylth.stages.planning import network_checks
from raylth.store import Store, locate
from tests.conftest import tiny_sweep

SPARSE = {"arms": ["naive", "permuted"], "sparsities": [0.5], "rewinds": [1]}
OWN = """
import torch
from matplotlib.figure import Figure

from raylth.analyses import Analysis
from raylth.arms import Arm
from raylth.config.analyses import NetworksConfig
from raylth.core.matching import MATCHERS, Matcher, MatchResult
from raylth.core.permutation import Permutation
from raylth.core.pruning import FINDERS, MaskFinder


def upside_down(mask, given):
    return {name: alive.flip(0) for name, alive in mask.items()}


def identity(a, b, spec, inputs, **changed):
    result = MATCHERS["identity"].match(a, b, spec, inputs)
    return MatchResult(**{"permutation": result.permutation, "objective": result.objective} | changed)


def reads(network, inputs):
    list(inputs.batches())
    return FINDERS["oneshot"].find(network, inputs)


def measure(networks, settings, inputs):
    for name in networks:
        yield {"network": name, "n": 3, "zero": 0.0}


def raising(*given):
    raise KeyError("two\\nlines")


def unreadable(frame, title):
    figure = Figure()
    figure.subplots().set_title("$\\\\no_such_symbol$")
    return figure


def leaves(*given):
    raise SystemExit(3)


flipped = Arm("B", upside_down, "B's early weights under A's mask upside down")
identical = Matcher(identity, "by nothing")
unknown_group = Matcher(lambda *given: identity(*given, objective={"nowhere": 1.0}), "x")
no_mapping = Matcher(lambda *given: identity(*given, objective=None), "x")
no_number = Matcher(lambda *given: identity(*given, objective={"fc1": None}), "x")
infinite = Matcher(lambda *given: identity(*given, objective={"fc1": float("inf")}), "x")
no_permutation = Matcher(lambda *given: identity(*given, permutation={}), "x")
one_group = Matcher(lambda *given: identity(*given, objective={"fc1": torch.tensor(0.25)}), "x")
silent = Matcher(lambda a, b, spec, inputs: list(inputs.batches()), "x")
by_samples = MaskFinder(reads, "by samples", reads_samples=True)
secretly = MaskFinder(reads, "by samples that it does not say it reads")
plain = Analysis(measure, NetworksConfig, "Nothing.")
taken = Analysis(lambda networks, settings, inputs: [{"sparsity": 1.0}], NetworksConfig, "A column.")
raises = Analysis(measure, NetworksConfig, "Raises.", table=raising, figure=raising)
mistyped = Analysis(measure, NetworksConfig, "Mistyped.", table=lambda frame: 3, figure=lambda frame, title: 3)
not_drawn = Analysis(measure, NetworksConfig, "Not drawn.", table=leaves, figure=unreadable)
"""
ENTRY_POINTS = """
[raylth.arms]
shuffle = own_plugins:flipped
permute = own_plugins:flipped
my-arm.2 = own_plugins:flipped
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own, and an installed package whose entry points name what is in it."""
    (tmp_path / "own_plugins.py").write_text(OWN)
    package = tmp_path / "own_plugins-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own-plugins\nVersion: 1\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_plugins.py"
    sys.modules.pop("own_plugins", None)
    for registry in (ARMS, ANALYSES, FINDERS, MATCHERS):
        registry._found.clear()


def sweep(**changes):
    return tiny_sweep(**{"sparse": SPARSE, "match": {"epochs": [4]}, **changes})


def ran(config, folder):
    """Run a sweep and write its rows; return its plan, store, graph and run."""
    plan, store = make_plan(config), Store(folder / "store")
    graph = run_plan(plan, store)
    run = Run.open(config, store)
    run.write(result_rows(plan, graph, store, run.name), graph)
    return plan, store, graph, run


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown_group", r"objective: 'nowhere' is no symmetry group of the network \(groups: fc1, "),
        ("no_mapping", "objective: expected a mapping from symmetry groups to numbers, found NoneType"),
        ("no_number", "objective: fc1: expected a finite number, found None"),
        ("infinite", "objective: fc1: expected a finite number, found inf"),
        ("no_permutation", r"permutation: expected a raylth\.core\.permutation\.Permutation, found dict"),
        ("silent", "only one with reads_samples=True may read batches"),
    ],
)
def test_what_a_matcher_returns_is_checked_before_it_is_published(own, tmp_path, name, message):
    _, _, graph, _ = ran(sweep(match={"method": f"own_plugins:{name}", "epochs": [4]}), tmp_path)
    (error,) = graph.errors.values()
    assert re.match(rf"(Type|Value)Error: matcher own_plugins:{name}: {message}", error)
    assert "\n" not in error


def test_a_group_that_a_matcher_says_nothing_of_has_a_row_without_a_correlation(own, tmp_path):
    plan, store, graph, run = ran(sweep(match={"method": "own_plugins:one_group", "epochs": [4]}), tmp_path)
    assert not graph.errors
    rows = load_permutations(run.folder).set_index("unit_group")
    assert rows["fixed_share"].to_dict() == {"fc1": 1.0, "fc2": 1.0, "fc3": 1.0}
    assert rows["correlation"].dropna().to_dict() == {"fc1": 0.25}
    assert "How well the units match" in write_report(run.folder, locate(tmp_path / "report")).read().decode()
    (permuted,) = (stage for stage in plan.stages if stage.labels.get("arm") == "permuted")
    assert "| objective (correlation, by weights cosine), mean | 0.2500 |" in card(find_network(store, permuted.key), "hf")


def test_a_finder_reads_samples_only_if_it_says_so(own, tmp_path):
    _, _, graph, _ = ran(sweep(mask={"finder": "own_plugins:secretly"}), tmp_path)
    (error,) = graph.errors.values()
    assert error.startswith("ValueError: mask finder own_plugins:secretly: only one with reads_samples=True may read batches")
    _, _, graph, _ = ran(sweep(mask={"finder": "own_plugins:by_samples"}), tmp_path)
    assert not graph.errors


def test_a_quantity_does_not_take_the_name_of_an_identity_column(own, tmp_path):
    asked = {"own_plugins:taken": {"networks": ["naive"]}, "own_plugins:plain": {"networks": ["naive"]}}
    _, _, graph, run = ran(sweep(analyses={"custom": asked}), tmp_path)
    (error,) = graph.errors.values()
    assert error.startswith("ValueError: analysis own_plugins:taken: 'sparsity' is a column of the table of measurements")
    frame = load_measurements(run.folder, "own_plugins:plain")
    assert frame[["network", "sparsity", "n"]].to_dict("records") == [{"network": "naive", "sparsity": 0.5, "n": 3.0}]


def test_what_an_analysis_raises_in_the_report_is_one_line_of_it(own, tmp_path):
    names = ("raises", "mistyped", "not_drawn", "plain")
    asked = {f"own_plugins:{name}": {"networks": ["naive"]} for name in names}
    *_, graph, run = ran(sweep(analyses={"custom": asked}), tmp_path)
    assert not graph.errors
    page = write_report(run.folder, locate(tmp_path / "report")).read().decode().replace("&#39;", "'")
    for expected in (
        "raises: analysis own_plugins:raises: figure: KeyError: 'two\\nlines'",
        "raises: analysis own_plugins:raises: table: KeyError: 'two\\nlines'",
        "analysis own_plugins:mistyped: figure: TypeError: expected a matplotlib Figure, found a int",
        "analysis own_plugins:mistyped: table: TypeError: expected a pandas.DataFrame, found a int",
        "analysis own_plugins:not_drawn: figure: ValueError: \\no_such_symbol ^ ParseFatalException",
        "analysis own_plugins:not_drawn: table: SystemExit: 3",
        "plain: plain has no figure",
    ):
        assert expected in page, expected
    tables = {path.name for path in (tmp_path / "report/tables").glob("analysis_*.csv")}
    assert tables == {"analysis_own_plugins_plain.csv"}
    header, row = (tmp_path / "report/tables/analysis_own_plugins_plain.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["n"] == "3.0", "a quantity, not the number of replicates"
    assert "accuracy.csv" in {path.name for path in (tmp_path / "report/tables").iterdir()}


def test_networks_that_differ_in_how_their_mask_was_found_are_no_replicates(tmp_path):
    small = {"arms": ["naive"], "sparsities": [0.5], "rewinds": [1]}
    runs = [ran(tiny_sweep(sparse=small, mask={"finder": name}), tmp_path)[3] for name in ("imp", "oneshot")]
    assert load_arms(tmp_path / "store")["settings"].nunique() == 2
    config = load_manifest(runs[0].folder)["config"]
    older = {name: settings for name, settings in config.items() if name != "mask"}
    said = [results._science(each, "x", None, is_matched=False) for each in (config, older)]
    assert said[0] == said[1], "a run from before there was the section"
    listed = {**config, "mask": {"finder": ["oneshot", "imp"]}}
    assert results._science(listed, "x", "imp", is_matched=False) == said[0], (
        "the same network, of a run with several finders"
    )


def test_an_entry_points_arm_is_a_network_that_analyses_may_name(own):
    assert "my-arm.2" not in ARMS._found, "as in a worker's process, which no sweep file was read in"
    assert parse_end("pi^-1( my-arm.2 )").base == "my-arm.2"
    with pytest.raises(ValueError, match=r"'nowhere' is none of A, B, imp, "):
        parse_end("nowhere")
    asked = {"lines": [{"between": ["naive", "pi(my-arm.2)"]}]}
    config = sweep(sparse={**SPARSE, "arms": ["naive", "my-arm.2"]}, analyses=asked)
    (line,) = (stage for stage in make_plan(config).stages if stage.kind == "connect")
    assert line.labels["between"] == "naive - pi(my-arm.2)"


def test_an_arm_with_a_transforms_name_is_trained_under_its_own(own, tmp_path, monkeypatch):
    config = sweep(sparse={**SPARSE, "arms": ["naive", "shuffle", "permute"]})
    plan, store, graph, _ = ran(config, tmp_path)
    assert not graph.errors
    found = {stage.labels["arm"]: stage for stage in plan.stages if stage.kind == "sparse"}
    mask = store.tensors(found["naive"].key, "mask")
    for name in ("shuffle", "permute"):
        for layer, alive in store.tensors(found[name].key, "mask").items():
            np.testing.assert_array_equal(alive, mask[layer][::-1])
    monkeypatch.setattr(network_checks, "OURS", ())
    assert not network_checks._uses(plan, list(plan.stages)).is_permuted


@pytest.mark.parametrize(
    ("kind", "said", "changes"),
    [
        ("sparse", "arm 'own_plugins:flipped'", {"sparse": {**SPARSE, "arms": ["own_plugins:flipped"]}}),
        ("match", "matcher 'own_plugins:identical'", {"match": {"method": "own_plugins:identical", "epochs": [4]}}),
        ("find", "mask finder 'own_plugins:by_samples'", {"mask": {"finder": "own_plugins:by_samples"}}),
        (
            "analysis",
            "analysis 'own_plugins:plain'",
            {"analyses": {"custom": {"own_plugins:plain": {"networks": ["naive"]}}}},
        ),
    ],
)
def test_other_code_than_was_planned_is_not_run(own, tmp_path, kind, said, changes):
    plan = make_plan(sweep(**changes))
    own.write_text(OWN.replace("flip(0)", "flip(-1)"))
    graph = run_plan(plan, Store(tmp_path / "store"))
    assert set(graph.errors.values()) == {f"RuntimeError: {said} is not the same code here as where the sweep was planned"}
    assert {graph.stages[key].kind for key in graph.errors} == {kind}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ('Arm("C", "none", "x")', "weights_from: should be 'A' or 'B', found 'C'"),
        ('Arm("B", "permut", "x")', "transform: should be one of 'none', 'permute', 'shuffle', 'random_permutation' or a"),
        ('Arm("B", "permute", "x")', "transform: 'permute' reads the permutation: set needs_match=True"),
        ('Arm("B", "shuffle", "x")', "transform: 'shuffle' draws random numbers: set needs_seed=True"),
        ('Arm("B", "none", "x", against="lth")', "against: should be a tuple of arms' names, found 'lth'"),
        ('Arm("B", "none", "x", against=("lth", "lth"))', "against: names an arm twice"),
        ('Arm("B", "none", None)', "summary: should be a string, found None"),
        ('MaskFinder(reads, "x", network="init")', "network: should be 'trained' or 'initial', found 'init'"),
        ('MaskFinder(3, "x")', "find: should be a function, found 3"),
        ('Matcher("activation", "x")', "match: should be a function, found 'activation'"),
        ('Matcher(identity, "x", settings=["sites"])', "settings: should be a mapping from names to fields of match"),
        ('Matcher(identity, "x", settings={"sites": "stites"})', "its settings name 'stites', which is no setting of match"),
        ('Analysis(3, NetworksConfig, "x")', "measure: should be a function, found 3"),
        ('Analysis(measure, NetworksConfig, "x", figure="bars")', "figure: should be a function, found 'bars'"),
        ('Analysis(measure, NetworksConfig(), "x")', "settings: should be a class"),
    ],
)
def test_a_mistake_in_what_an_extension_says_of_itself_is_one_line_of_its_setting(own, made, message):
    own.write_text(f"{OWN}\nwrong = {made}\n")
    name = "own_plugins:wrong"
    changes = {
        "Arm": {"sparse": {**SPARSE, "arms": [name]}},
        "MaskFinder": {"mask": {"finder": name}},
        "Matcher": {"match": {"method": [name]}},
        "Analysis": {"analyses": {"custom": {name: {"networks": ["naive"]}}}},
    }[made.partition("(")[0]]
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        sweep(**changes)
    assert "own_plugins:wrong" in str(raised.value)


def test_an_arm_is_checked_where_it_is_made():
    with pytest.raises(ValueError, match="weights_from: should be 'A' or 'B', found 'C'"):
        Arm("C", "none", "x")


def test_a_card_says_how_the_mask_was_found_and_moved(own, tmp_path):
    plan, store, graph, _ = ran(
        sweep(mask={"finder": "own_plugins:by_samples"}, match={"method": "weight", "epochs": [4]}), tmp_path
    )
    assert not graph.errors
    found = {stage.labels["arm"]: stage.key for stage in plan.stages if stage.kind == "sparse"}
    text = card(find_network(store, found["permuted"]), "safetensors")
    assert "a mask found on network A by `own_plugins:by_samples`, by samples, on weights of A or of" in " ".join(
        text.split()
    )
    assert "| how it matches | by weights (Git Re-Basin, Algorithm 1) |" in text
    assert "permuted to B; the permutation pi is the one that weight matching found between A and B at epoch 4 of B" in text
    assert "No permutation was matched for it." in card(find_network(store, found["naive"]), "safetensors")


def test_a_kind_of_stage_that_has_no_share_is_an_error():
    with pytest.raises(KeyError):
        ResourcesConfig().of("nothing")
