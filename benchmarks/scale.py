"""How planning, store, rows, status and report grow with a sweep, and what a simulated cluster asks of the driver.

- growth: real plans of 1,000 to 100,000 stages in one process. Their stages publish something small and train nothing, so
  what is measured is all that surrounds a training: seconds for the plan, for a stage's lease, publication and release, for
  the scan of a store that holds everything, for the rows of all stages, for one status, for loading the results and for the
  report; memory. `order` is the exponent between two sizes: 1 is linear.
- cluster: a Ray of several simulated nodes with 1,024 GPUs in all that are none. Stages that sleep run on as many workers
  as this machine's memory allows, of two lengths, and the driver's processor is measured. What a trial costs it, and what
  nodes and live trials cost it while nothing ends, say from which length of a training on it keeps that many GPUs busy.
  That is extrapolated, and assumes that a worker on another machine costs the driver what one here does.

    python benchmarks/scale.py [--stages 1000 10000 100000] [--nodes 1 32] [--trials 160] [--workers 3 12] [--json FILE]
"""

import argparse
import itertools
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from hardware import describe, tell
from scipy.optimize import nnls

from raylth.config.sweep import SweepConfig
from raylth.driver.progress import StatusFile
from raylth.driver.run_record import Recorder, Run
from raylth.report import load_results
from raylth.report.page import write_report
from raylth.stages import load_data, make_context, make_plan, run_stage, scan
from raylth.store import Store

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
GPUS = 1024
ARMS = ["lth", "naive", "permuted", "random", "random_permutation"]
SPARSITIES = [0.5, 0.6, 0.7, 0.8]
REWINDS = 48
LENGTHS = (0.5, 2.0)  # seconds of a stage that sleeps


def sweep(name: str, folder: Path, replicates: int, rewinds: int = REWINDS, **more: Any) -> SweepConfig:
    """A sweep with replicates * rewinds * 20 arms, and 14 stages of other kinds for each replicate."""
    return SweepConfig.model_validate(
        {
            "name": name,
            "storage": str(folder / name),
            "seeds": {"replicates": replicates},
            "data": {"name": "digits", "num_train": 100, "num_test": 50},
            "model": {"name": "resnet20", "widths": [0.25]},
            "dense": {"epochs": rewinds + 1},
            "imp": {"epochs_per_round": 1},
            "sparse": {"arms": ARMS, "sparsities": SPARSITIES, "rewinds": list(range(rewinds))},
            **more,
        }
    )


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a function takes, and what it returns."""
    start = time.perf_counter()
    found = function()
    return time.perf_counter() - start, found


def memory() -> float:
    """Return this process's memory, in MB."""
    return psutil.Process().memory_info().rss / 1e6


def growth(folder: Path, stages: int) -> dict[str, Any]:
    """Run all stages of one plan as stubs, in this process, and time what surrounds them."""
    config = sweep(f"growth-{stages}", folder, max(1, stages // (20 * REWINDS + 14)))
    before = memory()
    seconds: dict[str, float] = {}
    seconds["plan"], plan = timed(lambda: make_plan(config))
    store, run = Store(config.storage), Run.open(config, Store(config.storage))
    context = make_context(store, load_data(config.data))
    graph = scan(plan, store)
    recorder, status = Recorder(run, plan, graph), StatusFile(run.folder)
    stage_seconds = row_seconds = 0.0
    while (stage := graph.next_ready()) is not None:
        start = time.perf_counter()
        run_stage(stage, context)
        published = time.perf_counter()
        graph.finish(stage.key)
        recorder.update()
        stage_seconds += published - start
        row_seconds += time.perf_counter() - published
    seconds["lease, publication and release of all stages"] = stage_seconds
    taken, _ = timed(recorder.close)
    seconds["rows of all stages"] = row_seconds + taken
    seconds["a status"], _ = timed(lambda: status.update(graph, 0, state="finished"))
    seconds["scan"], again = timed(lambda: scan(plan, store))
    assert again.finished, "the store holds everything"
    seconds["results"], _ = timed(lambda: load_results(run.folder))
    seconds["report"], _ = timed(lambda: write_report(run.folder, run.report.parent))
    return {
        "stages": len(plan.stages),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "memory_megabytes": round(memory() - before, 1),
    }


def orders(sizes: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return for each measure the exponents between each size and the next: 1 is linear, 2 quadratic."""
    found: dict[str, list[float]] = {}
    for small, large in itertools.pairwise(sizes):
        factor = math.log(large["stages"] / small["stages"])
        for name, value in large["seconds"].items():
            ratio = max(value, 1e-4) / max(small["seconds"][name], 1e-4)
            found.setdefault(name, []).append(round(math.log(ratio) / factor, 2))
    return found


def clusters(folder: Path, nodes: list[int], trials: int, workers: list[int]) -> dict[str, Any]:
    """Run stages that sleep, of two lengths, on Rays of simulated nodes, and say what the driver's processor does for them.

    Its seconds are taken to be a for each trial that ends, and for each second b, c for each node and d for each live trial:
    the least squares, none below 0, over all runs. All workers are tried on the first number of nodes, the most on others.
    """
    settings = [(count, most) for count in nodes for most in (workers if count == nodes[0] else [max(workers)])]
    runs = [
        {"nodes": count, "workers": most, "seconds a training": length}
        | measured(folder / f"{count}-{most}-{length}", count, trials, most, length)
        for count, most in settings
        for length in LENGTHS
    ]
    terms = np.array(
        [[run["trials"], run["seconds"], run["seconds"] * run["nodes"], run["seconds"] * run["workers"]] for run in runs]
    )
    (trial, second, node, live), _ = nnls(terms, np.array([run["driver's processor seconds"] for run in runs]))
    idle = second + max(nodes) * node + GPUS * live
    return {
        "gpus": GPUS,
        "runs": runs,
        "driver's processor": {
            "milliseconds a trial": round(1000 * trial, 2),
            "share": round(second, 4),
            "share for each node": round(node, 5),
            "share for each live trial": round(live, 5),
        },
        "extrapolated": {
            "nodes": max(nodes),
            f"share while {GPUS} trials live": round(idle, 3),
            "shortest training that keeps all GPUs busy, seconds": round(GPUS * trial / (1 - idle), 1) if idle < 1 else None,
        },
    }


def measured(folder: Path, nodes: int, trials: int, workers: int, length: float) -> dict[str, Any]:
    """Run a sweep on a cluster; returns how many trials ended after the first quarter, in how long, and the driver's CPU."""
    from ray.cluster_utils import Cluster

    from raylth.cluster import launch
    from raylth.cluster.address import Joining
    from raylth.cluster.nodes.budget_meter import Meter

    os.environ["RAYLTH_STUB_SECONDS"] = json.dumps({"sparse": length})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    machines = Cluster()  # whose processes, workers among them, have this environment
    for node in range(nodes):  # workers need a CPU each, so that there are so many at once
        cpus = workers // nodes + (node < workers % nodes)
        machines.add_node(num_cpus=cpus, num_gpus=GPUS // nodes, object_store_memory=80_000_000)
    gpu = {kind: {"gpus": 1, "cpus": 1} for kind in ("dense", "imp", "sparse")}
    config = sweep("cluster", folder, 1, trials // 20, resources={**gpu, "pack": "off", "engine": "eager"})
    plan, store = make_plan(config), Store(config.storage)
    run, graph = Run.open(config, store), scan(plan, store)
    recorder, status = Recorder(run, plan, graph), StatusFile(run.folder)
    marks: list[tuple[int, float, float]] = []  # stages ended, time, the driver's seconds of the processor

    def watch(graph: Any, epochs: int, notes: list[str]) -> None:
        recorder.update()
        status.update(graph, epochs)
        marks.append((len(graph.ended), time.monotonic(), _processor_seconds()))

    launch.gpu_table = lambda: [("simulated", 2**33)] * GPUS
    launch.run_on_ray(
        plan,
        graph,
        store,
        load_data(config.data),
        errors=run.errors,
        watch=watch,
        meter=Meter(None, None, run.folder / "used.json"),
        joining=Joining(machines.address),
        imports=("tests.fake_gpus", "stub_stages"),
    )
    recorder.close()
    machines.shutdown()
    assert set(graph.states.values()) == {"done"}, graph.errors
    first = next(mark for mark in marks if mark[0] >= len(plan.stages) // 4)  # workers have started
    last = next(mark for mark in marks if mark[0] >= len(plan.stages) - 1)  # and end after this
    ended, seconds, used = (round(end - begin, 2) for begin, end in zip(first, last, strict=True))
    return {"trials": ended, "seconds": seconds, "driver's processor seconds": used}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 32], help="simulated nodes of each cluster; none: no Ray")
    parser.add_argument("--trials", type=int, default=160, help="a multiple of 20")
    parser.add_argument("--workers", type=int, nargs="+", default=[3, 12], help="that this machine's memory allows")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    os.environ.setdefault("RAYLTH_STUB_SECONDS", json.dumps({}))
    sys.path.insert(0, str(HERE.parent))  # for tests.fake_gpus
    import stub_stages  # noqa: F401  # stages of this process, too

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sizes = [growth(folder, stages) for stages in options.stages]
        found = clusters(folder, options.nodes, options.trials, options.workers) if options.nodes else {}
    tell(
        {"benchmark": "scale", "growth": sizes, "order": orders(sizes), "cluster": found, "hardware": describe()},
        options.json,
    )


if __name__ == "__main__":
    main()
