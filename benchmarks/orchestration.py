"""What the orchestration costs: real plans whose stages sleep instead of training, on a real Ray of two CPUs.

- arms: N sparse trainings of 0.1 s. Wall time (Ray's start included) against the ideal N * 0.1 s / 2, what passes
  on a warm worker between two arms, and how the driver's memory grows between the 1,000th stage and the last.
- resume: the command line on the finished sweep, from its start to its exit.
- chain: three replicates whose dense trainings take 4, 6 and 9 s. The share of the workers' time in which one has nothing to
  do while a stage whose parents exist waits.

    python benchmarks/orchestration.py [--arms 10000] [--folder FOLDER] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from hardware import describe, tell

from raylth.cluster.address import Joining
from raylth.cluster.launch import run_on_ray
from raylth.cluster.nodes.budget_meter import Meter
from raylth.config.sweep import SweepConfig
from raylth.driver.progress import StatusFile
from raylth.driver.run_record import Recorder, Run
from raylth.stages import Graph, Plan, load_data, make_plan, scan
from raylth.store import Store

CPUS = 2
REWINDS = 50
DATA = {"name": "digits", "num_train": 100, "num_test": 50}


def sweep(name: str, folder: Path, replicates: int, rewinds: int) -> SweepConfig:
    """A sweep with replicates * rewinds * 20 arms."""
    return SweepConfig.model_validate(
        {
            "name": name,
            "storage": str(folder / name),
            "seeds": {"replicates": replicates},
            "data": DATA,
            "model": {"name": "resnet20", "widths": [0.25]},
            "dense": {"epochs": rewinds + 1},
            "imp": {"epochs_per_round": 1},
            "sparse": {
                "arms": ["lth", "naive", "permuted", "random", "random_permutation"],
                "sparsities": [0.5, 0.6, 0.7, 0.8],
                "rewinds": list(range(rewinds)),
            },
        }
    )


class Watch:
    """What `raylth.sweep` does while a sweep runs: rows, status; and the driver's memory beside it."""

    def __init__(self, run: Run, plan: Plan, graph: Graph) -> None:
        self.recorder, self.status = Recorder(run, plan, graph), StatusFile(run.folder)
        self.memory: dict[int, int] = {}  # stages ended -> bytes

    def __call__(self, graph: Graph, epochs: int, notes: list[str]) -> None:
        for note in notes:
            print(note, file=sys.stderr)
        self.recorder.update()
        self.status.update(graph, epochs)
        self.memory.setdefault(len(graph.ended) // 100 * 100, psutil.Process().memory_info().rss)


def run_stubs(config: SweepConfig, seconds: dict[str, Any]) -> tuple[Plan, Store, float, dict[int, int]]:
    """Run a sweep of stubs; returns its plan, its store, the wall time and the driver's memory on the way."""
    os.environ["RAYLTH_STUB_SECONDS"] = json.dumps(seconds)
    start = time.monotonic()
    plan, store = make_plan(config), Store(config.storage)
    run, graph = Run.open(config, store), scan(plan, store)
    assert not graph.cached, f"{config.storage} is not empty"
    watch = Watch(run, plan, graph)
    data = load_data(config.data)
    run_on_ray(
        plan,
        graph,
        store,
        data,
        errors=run.errors,
        watch=watch,
        meter=Meter(None, None, run.folder / "used.json"),
        joining=Joining("local"),
        imports=("stub_stages",),
    )
    watch.recorder.close()
    assert set(graph.states.values()) == {"done"}, graph.errors
    return plan, store, time.monotonic() - start, watch.memory


def measure_arms(folder: Path, arms: int) -> dict[str, Any]:
    replicates = arms // (20 * REWINDS)
    config = sweep("arms", folder, replicates, REWINDS)
    plan, store, wall, memory = run_stubs(config, {"sparse": 0.1})
    spans = [store.metrics(stage.key) for stage in plan.stages if stage.kind == "sparse"]
    ideal = plan.count("sparse") * 0.1 / CPUS
    after_thousand = memory[min(count for count in memory if count >= 1000)]
    return {
        "arms": plan.count("sparse"),
        "stages": len(plan.stages),
        "wall_seconds": round(wall, 1),
        "ideal_seconds": ideal,
        "ratio": round(wall / ideal, 3),
        "overhead_seconds_per_arm": round(overhead(spans), 4),
        "driver_megabytes_after_1000": round(after_thousand / 1e6, 1),
        "driver_megabytes_growth": round((max(memory.values()) - after_thousand) / 1e6, 1),
    }


def measure_resume(folder: Path, arms: int) -> dict[str, Any]:
    config = sweep("arms", folder, arms // (20 * REWINDS), REWINDS)
    file = folder / "arms.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    times = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "raylth.sweep", str(file)], capture_output=True, text=True, check=False)
        times.append(time.monotonic() - start)
        assert done.returncode == 0, done.stdout + done.stderr
    return {"seconds": [round(taken, 2) for taken in times], "median_seconds": round(float(np.median(times)), 2)}


def overhead(spans: list[dict[str, Any]]) -> float:
    """Seconds that pass on a worker between two arms, mean over all but each worker's first."""
    total, count = 0.0, 0
    for pid in {span["pid"] for span in spans}:
        own = [span for span in spans if span["pid"] == pid]
        whole = max(span["ended"] for span in own) - min(span["started"] for span in own)
        total += whole - sum(span["ended"] - span["started"] for span in own)
        count += len(own) - 1
    return total / count


def measure_chain(folder: Path) -> dict[str, Any]:
    seconds = {"dense": [4.0, 6.0, 9.0], "imp": 0.7, "match": 0.5, "sparse": 0.4}
    plan, store, wall, _ = run_stubs(sweep("chain", folder, 3, 2), seconds)
    spans = {stage.key: store.metrics(stage.key) for stage in plan.stages}
    owner = {key: stage.key for stage in plan.stages for key in stage.produces}
    starts = {key: span["started"] for key, span in spans.items()}
    ends = {key: span["ended"] for key, span in spans.items()}
    first = min(starts.values())
    ready = {s.key: max((ends[owner[parent]] for parent in s.parents.values()), default=first) for s in plan.stages}
    times = np.arange(first, max(ends.values()), 0.002)

    def count(begin: dict[str, float], end: dict[str, float]) -> np.ndarray:
        return sum((times >= begin[key]).astype(int) - (times >= end[key]).astype(int) for key in begin)

    idle = np.minimum(CPUS - count(starts, ends), count(ready, starts)).clip(min=0)
    return {
        "stages": len(plan.stages),
        "wall_seconds": round(wall, 1),
        "busy_share": round(float(count(starts, ends).mean()) / CPUS, 3),
        "idle_share_while_work_waits": round(float(idle.mean()) / CPUS, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, default=10_000, help="a multiple of 1,000")
    parser.add_argument("--folder", type=Path, help="where the stores go (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        report = {
            "benchmark": "orchestration, stages that sleep",
            "chain": measure_chain(folder),
            "arms": measure_arms(folder, options.arms),
            "resume": measure_resume(folder, options.arms),
            "hardware": describe(),
        }
    tell(report, options.json)


if __name__ == "__main__":
    main()
