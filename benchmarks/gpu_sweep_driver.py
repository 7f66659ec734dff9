"""Runs a sweep whose workers import a module first, and prints how it ended: `gpu_sweep_driver.py FILE STORAGE MODULE`.

With --fake Ray has a GPU that is none; the module must then stand in for it.
"""

import argparse
import json
from typing import Any

from raylth.cluster import launch
from raylth.cluster.address import LOCAL, Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.config.load import read_sweep
from raylth.stages import load_data, make_plan, scan
from raylth.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("storage")
    parser.add_argument("module")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--fake", action="store_true")
    options = parser.parse_args()
    address, cluster = LOCAL, None
    if options.fake:
        from ray.cluster_utils import Cluster

        launch.gpu_table = lambda: [("fake", 8 * 2**30)]
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
        address = cluster.address
    plan, store = make_plan(read_sweep(options.file, options.settings)), Store(options.storage)
    graph, told = scan(plan, store), list[str]()

    def watch(graph: Any, epochs: Any, notes: list[str]) -> None:
        told.extend(notes)

    launch.run_on_ray(
        plan, graph, store, load_data(plan.config.data), errors=store.root / "errors",
        meter=Meter(None, None, store.root / "used.json"), joining=Joining(address), watch=watch, imports=(options.module,),
    )  # fmt: skip
    if cluster is not None:
        cluster.shutdown()
    packs = [store.metrics(stage.key).get("pack", 1) for stage in plan.stages if stage.epochs and store.has(stage.key)]
    states = list(graph.states.values())
    ended = {"done": states.count("done"), "stages": len(states), "errors": graph.errors, "incidents": dict(graph.incidents)}
    print("ENDED " + json.dumps({**ended, "packs": packs, "notes": told}))


if __name__ == "__main__":
    main()
