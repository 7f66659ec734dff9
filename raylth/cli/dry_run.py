"""What a sweep would do, printed before anything is started: `raylth sweep FILE --dry-run`, `raylth check FILE`."""

import os
from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylth.config.load import BadSweep
from raylth.config.sweep import SweepConfig
from raylth.core.data import DATASETS, MissingData, check_dataset
from raylth.core.data.streamed.dataset import ImageFiles
from raylth.driver.prepare import check_space, in_hours, plan_of, scan_of, share_of, tried
from raylth.driver.run_record import Run
from raylth.driver.run_search import final_of, what_is_searched
from raylth.stages import (
    Forecast,
    Graph,
    Hours,
    Plan,
    forecast,
    free_bytes,
    hours,
    in_units,
    load_data,
    load_same_data,
    symmetry_notes,
)
from raylth.stages.rehearsal import describe_data, describe_networks
from raylth.store import Store

__all__ = ["print_check", "print_dry_run", "print_plan"]


def print_dry_run(config: SweepConfig) -> None:
    """Print what a sweep, or the last sweep of a search, would do. Raises BadSweep or DataError for what cannot be done."""
    config = Run.open(config, Store(config.storage)).config
    print_plan(config if config.search is None else final_of(config))
    if config.search is not None:
        print(what_is_searched(config))


def print_check(config: SweepConfig) -> None:
    """Print what a sweep's data and networks are, each network's loss and gradient on one batch, and then its dry run.

    Raises BadSweep or DataError, also for data that are not there. Nothing is written.
    """
    chosen = config if config.search is None else final_of(config)
    plan = plan_of(chosen)
    tried(plan, Store(config.storage))
    dataset = load_data(chosen.data.model_copy(update={"download": False}), to_train=False)
    if isinstance(dataset, ImageFiles):
        dataset = dataset.loaded_by(chosen.data.loader)
    print(f"data {chosen.data.name}")
    for line in describe_data(plan, dataset):
        print(f"  {line}")
    try:
        for line in describe_networks(plan, dataset):
            print(line, flush=True)
    except ValueError as error:
        raise BadSweep(str(error)) from error
    print_dry_run(config)


def print_plan(config: SweepConfig) -> None:
    """Print what a sweep would do, by kind of stage, what the store already holds, and what it will cost."""
    plan, store = plan_of(config), Store(config.storage)
    tried(plan, store)
    graph = scan_of(plan, store, print)
    missing = _check_data(plan, graph, store)
    table = Table(title=f"plan of {config.name}", title_justify="left")
    ahead = forecast(plan, graph, os.cpu_count() or 1)
    for heading in ("stage", "planned", "in the store", "to run", "trainings", "epochs to train", "to write"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    totals: Counter[str] = Counter()
    for kind in dict.fromkeys(stage.kind for stage in plan.stages):
        stages = [stage for stage in plan.stages if stage.kind == kind]
        todo = [stage for stage in stages if graph.states[stage.key] != "done"]
        row = {
            "planned": len(stages),
            "held": len(stages) - len(todo),
            "todo": len(todo),
            "trainings": sum(stage.epochs > 0 for stage in todo),
            "epochs": sum(stage.epochs for stage in todo),
        }
        totals.update(row)
        table.add_row(kind, *(f"{number:,}" for number in row.values()), in_units(ahead.published[kind]))
    table.add_section()
    numbers = (f"{totals[name]:,}" for name in ("planned", "held", "todo", "trainings", "epochs"))
    table.add_row("all", *numbers, in_units(sum(ahead.published.values())))
    Console().print(table)
    held = f"each node's object store holds the data ({in_units(ahead.dataset)}) and checkpoints (up to "
    print(f"{held}{in_units(ahead.checkpoint)} each); states of running trainings: {in_units(ahead.states)}")
    for line in _costs(config, hours(plan, graph, store, share_of(config)), ahead):
        print(line)
    for line in symmetry_notes(plan):
        print(line)
    free = free_bytes(store.root)
    print(f"storage: {config.storage}{'' if free is None else f', {in_units(free)} free'}; nothing was started")
    if missing:
        Console(stderr=True).print(Text(missing, style="yellow"), soft_wrap=True)
    check_space(config, ahead, free)


def _check_data(plan: Plan, graph: Graph, store: Store) -> str:
    """Raise DataError for data that cannot be trained on, or are not those that the store's stages were made from.

    Whole sets of files that nothing was made from yet are not read. Returns what there is to say of files that are not
    there: costs can be planned without them.
    """
    data, info = plan.config.data, DATASETS[plan.config.data.name]
    if not graph.finished:
        try:
            check_dataset(data.name, root=data.root, layout=data.layout, download=data.download)
        except MissingData as error:
            reason = str(error).removeprefix("data.root: ")
            return f"data.root: {reason} (needed for training; the plan is made without it)"
    if graph.made_from or info.files is None:
        try:
            load_same_data(plan, graph, store, print, dry=True)
        except MissingData:  # to be fetched, or converted
            if not info.from_files:
                raise
    return ""


def _costs(config: SweepConfig, time: Hours, ahead: Forecast) -> list[str]:
    """Say how long the trainings take, how that is known, and what it costs at the sweep's prices."""
    if not time.num_measured + time.num_counted + time.num_unknown:
        return []
    known = [f"{time.num_measured} like trainings of this plan that have finished"] if time.num_measured else []
    if time.num_counted:
        known.append(f"{time.num_counted} by counted operations, at {' and '.join(time.sources)}; small networks take longer")
    if time.num_unknown:
        known.append(f"{time.num_unknown} more, for which this machine has no estimate")
    lines = [f"trainings: {in_hours(time.gpus, time.cpus)} ({'; '.join(known)})"]
    prices = config.prices
    if prices is not None:
        usd = time.gpus * prices.gpu_hour + time.cpus * prices.cpu_hour
        source = f" ({prices.source})" if prices.source else ""
        month = ahead.storage / 1e9 * prices.gb_month
        besides = f"{prices.hour:g} USD per hour in addition, {month:,.2f} USD a month to store"
        lines.append(f"money: about {usd:,.2f} USD, {besides}{source}")
    return lines
