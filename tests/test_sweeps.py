"""The sweep files: each costs what its header says, and the paper's tables are planned whole, as the paper ran them."""

import importlib.resources
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from raylth.config.load import read_sweep
from raylth.driver.run_search import final_of, judged_by
from raylth.report import paper_accuracy
from raylth.stages import Graph, Plan, Stage, make_plan

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"
FILES = sorted(path.name for path in SWEEPS.glob("*.yaml"))
TABLES = {name: int(name[5:7]) for name in FILES if name.startswith("table")}  # file -> number in the paper
ACCURACY = [name for name, number in TABLES.items() if number >= 5]
ENSEMBLES = [name for name, number in TABLES.items() if number == 1]

COUNTS = r"([\d,]+) trainings(?:, ([\d,]+) epochs)?"


@cache
def plan_of(name: str) -> Plan:
    return make_plan(read_sweep(SWEEPS / name))


def searched(name: str) -> tuple[int, int]:
    """Trainings and epochs of a search at most: of all repeats what trials share, every trial to its end, the winners."""
    config = read_sweep(SWEEPS / name)
    judged, final = (make_plan(part(config)).stages for part in (judged_by, final_of))
    shared = counts([stage for stage in judged if stage.kind != "sparse"])
    trials = counts([stage for stage in judged if stage.kind == "sparse"])
    winners, arms = (counts([stage for stage in final if (stage.kind == "sparse") == is_arm]) for is_arm in (False, True))
    repeats, tried = config.search.repeats, config.search.trials
    return tuple(repeats * (shared[i] + tried * trials[i] + arms[i]) + winners[i] for i in range(2))


def header(name: str) -> str:
    """The comment at the head of a file, without its marks."""
    lines = (SWEEPS / name).read_text().split("\n\n")[0].splitlines()
    return "\n".join(line.removeprefix("#").strip() for line in lines)


def counts(stages: list[Stage]) -> tuple[int, int]:
    return sum(stage.epochs > 0 for stage in stages), sum(stage.epochs for stage in stages)


def read_counts(trainings: str, epochs: str | None) -> tuple[int, int | None]:
    return int(trainings.replace(",", "")), int(epochs.replace(",", "")) if epochs else None


@pytest.mark.parametrize("name", FILES)
def test_the_command_of_the_header_runs_the_file_itself(name):
    command = re.search(r"^Command +: (.*)$", header(name), re.MULTILINE)
    assert command
    assert re.findall(r"sweeps/\S+\.yaml", command[1]) == [f"sweeps/{name}"]


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_what_is_trained(name):
    planned = searched(name) if plan_of(name).config.search else counts(list(plan_of(name).stages))
    stated = re.search(rf"^Cost +: {COUNTS}", header(name), re.MULTILINE)
    assert stated
    trainings, epochs = read_counts(*stated.groups())
    assert trainings == planned[0]
    assert epochs == planned[1] or (epochs is None and name not in TABLES)
    for other, *rest in re.findall(rf"^After (\S+\.yaml) in the same store: {COUNTS}", header(name), re.MULTILINE):
        held = [key for stage in plan_of(other).stages for key in stage.produces]
        graph = Graph(plan_of(name).stages, held)
        assert counts([stage for key, stage in graph.stages.items() if graph.states[key] != "done"]) == read_counts(*rest)


def test_every_cifar_table_of_the_paper_has_a_file():
    paper = paper_accuracy()
    cifar = set(paper[paper["dataset"].str.startswith("cifar")]["table"])
    assert {1} | cifar <= set(TABLES.values())


@pytest.mark.parametrize("name", ACCURACY)
def test_every_cell_of_the_table_is_planned_three_times(name):
    plan = plan_of(name)
    source = (plan.config.data.name, plan.config.model.name)
    planned = Counter(
        (*source, *(stage.labels[label] for label in ("width", "sparsity", "rewind_epoch", "arm", "match_epoch")))
        for stage in plan.stages
        if stage.kind == "sparse"
    )
    table = paper_accuracy().query("metric == 'top1'")
    table = table[table["table"] == TABLES[name]]
    cells = {
        (row.dataset, row.model, row.width, row.sparsity, row.rewind_epoch, row.arm,
         row.match_epoch if row.arm == "permuted" else None)
        for row in table.itertuples()
    }  # fmt: skip
    assert cells
    assert {cell: planned[cell] for cell in cells if planned[cell] != 3} == {}


def test_every_set_of_table_1_is_planned_with_its_members():
    with (importlib.resources.files("raylth.report") / "data" / "paper_ensembles.csv").open(encoding="utf-8") as text:
        paper = pd.read_csv(text)
    columns = ["dataset", "model", "width", "sparsity", "method", "members"]
    sets = set(paper[paper["method"] != "dense"][columns].itertuples(index=False, name=None))
    planned = set()
    for name in ENSEMBLES:
        plan = plan_of(name)
        source = (plan.config.data.name, plan.config.model.name)
        found = [stage for stage in plan.stages if stage.kind == "ensemble"]
        labels = ("width", "sparsity", "arm")
        planned |= {(*source, *(stage.labels[label] for label in labels), len(stage.parents)) for stage in found}
        assert plan.count("dense") >= paper["members"].max()
    assert sets
    assert sets <= planned


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_trained_as_the_published_code_does(name):
    config = plan_of(name).config
    assert (config.imp.momentum, config.imp.weight_decay) == (0, 0)
    assert config.match.stream_site == ({"layer3.0.conv2": -2} if config.model.name == "resnet20" else {})
    assert config.match.augment
    assert config.data.normalisation == ("imagenet" if config.data.name == "cifar10" else "own")
    assert config.model.init == ("torch" if config.model.name == "vgg11" else "own")
    for kind in (config.dense, config.imp, config.sparse):
        assert (kind.drop_last, kind.lr_interval) == (True, "epoch")
    for kind in ("dense", "imp", "match", "sparse"):
        assert getattr(config.resources, kind).gpus != 0, f"{kind} would train on the CPU"
