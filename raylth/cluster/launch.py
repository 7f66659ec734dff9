"""Starts Ray or joins a cluster, and runs a plan's graph through Ray Tune until every stage is done, failed or blocked."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from raylth.cluster.address import LOCAL, ClusterError, Joining
from raylth.cluster.nodes.budget_meter import Meter
from raylth.cluster.nodes.capacity import machines, sums
from raylth.cluster.nodes.head_monitor import HeadMonitor
from raylth.cluster.nodes.preflight import check_cluster, on_all_machines, versions
from raylth.cluster.ray_private import DRIVER_ENVIRONMENT
from raylth.cluster.slots import MOST_TASKS, TASK_RESOURCE, room, slot_of
from raylth.cluster.worker.checkpoint_cache import start_checkpoint_actors
from raylth.cluster.worker.gpu import total_bytes
from raylth.cluster.worker.payload import Shared
from raylth.common import signals
from raylth.common.importing import uncollected
from raylth.config.resources import ResourcesConfig, TrainingShare
from raylth.config.types import AUTO
from raylth.core.data import Dataset
from raylth.stages import Graph, Plan, forecast, in_units
from raylth.store import Location, Store

if TYPE_CHECKING:
    from raylth.cluster.scheduler.loop import Watch

__all__ = ["check_shares", "joined", "run_on_ray"]

LOCALLY = Joining()


def run_on_ray(
    plan: Plan,
    graph: Graph,
    store: Store,
    dataset: Dataset,
    *,
    errors: Location,
    watch: "Watch",
    meter: Meter,
    joining: Joining = LOCALLY,
    imports: tuple[str, ...] = (),
    lost: Callable[[str], None] = lambda address: None,
) -> None:
    """Run what `graph` lacks; on return every stage is done, failed or blocked, unless the budget of `meter` is used up.

    `joining` says which cluster is joined, or that Ray is started on this machine. `watch` is called about twice a second,
    and once at the end. A process that is interrupted (SIGINT, SIGTERM, SIGHUP) raises KeyboardInterrupt here within a second
    (two, while `watch` imports), with everything that had finished in the store. Raises ClusterError for a share of resources
    that no node has. `imports` names modules that workers import first: they may register stages or networks of their own.
    `lost` is called, from a thread, with the address of a cluster that does not answer any more; this may never return then.
    """
    with joined(joining):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]] if joining.is_local else machines()
        check_shares(plan.config.resources, nodes)
        _check_object_stores(plan, graph)
        shared = _shared(plan, graph, store, dataset, errors, imports)
        with uncollected():  # here: it takes a second, in which the actors start
            from raylth.cluster.scheduler.graph_searcher import GraphSearcher
            from raylth.cluster.scheduler.loop import run_loop

        searcher = GraphSearcher(
            graph, store, plan.config.resources, gpu_table(), sums(nodes), may_grow=joining.address != LOCAL
        )
        head = ray.get_runtime_context().gcs_address
        with HeadMonitor(head, lambda: lost(head)):
            run_loop(searcher, shared, watch, joining, meter)


def _shared(plan: Plan, graph: Graph, store: Store, dataset: Dataset, errors: Location, imports: tuple[str, ...]) -> Shared:
    """Return what all workers are given, with the data set in the object store and the checkpoint actors started."""
    root, resources = str(store.root.absolute()), plan.config.resources
    return Shared(
        root=root,
        stages={key: stage.to_dict() for key, stage in graph.stages.items()},  # a done one may be found broken
        dataset=[ray.put(dataset)],
        data_sha256=dataset.fingerprint(),
        checkpoints=start_checkpoint_actors(root, resources.checkpoint_actors, resources.checkpoint_bytes),
        errors=str(errors.absolute()),
        evaluate_every=plan.config.log.evaluate_every,
        state_every=resources.state_every,
        state_seconds=resources.state_seconds,
        versions=versions(),
        imports=imports,
    )


@contextlib.contextmanager
def joined(joining: Joining) -> Iterator[Any]:
    """Give the ray module, with Ray started here or the cluster joined as for a sweep."""
    _start_ray(joining)
    try:
        if not joining.is_local:
            check_cluster(joining.without_token)
        yield ray
    finally:
        with signals.shielded():
            ray.shutdown()


def _start_ray(joining: Joining) -> None:
    os.environ.update({name: value for name, value in DRIVER_ENVIRONMENT.items() if name not in os.environ})
    level = logging.INFO if joining.verbose else logging.CRITICAL  # errors are reported by this package, once
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(level)
    options: dict[str, Any] = {"log_to_driver": joining.verbose, "logging_level": level, "ignore_reinit_error": False}
    if joining.is_local:
        options["resources"] = {TASK_RESOURCE: MOST_TASKS}
    try:
        with signals.shielded():
            ray.init(address=joining.address, include_dashboard=None, **options)
    except Exception as error:  # Ray raises that very class where its processes do not come up
        where = "on this machine" if joining.is_local else f"at {joining.address}"
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"cannot reach or start Ray {where}: {why}") from error


def _check_object_stores(plan: Plan, graph: Graph) -> None:
    """Refuse a data set that does not fit in a node's object store beside one checkpoint."""
    ahead = forecast(plan, graph, 0)
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    needed, smallest = ahead.dataset + ahead.checkpoint, int(min(stores))
    if needed > smallest:
        raise ClusterError(
            f"data.name: {plan.config.data.name} and one checkpoint take {in_units(needed)}, and the smallest node's object "
            f"store has {in_units(smallest)}: {in_units(needed - smallest)} ({needed - smallest:,} bytes) are missing"
        )


def gpu_table() -> list[tuple[str, int]]:
    """Return the name and the bytes of memory of every GPU of the cluster."""
    found = on_all_machines(total_bytes, only=lambda node: bool(node["Resources"].get("GPU")))
    return [gpu for _, each in found for gpu in each]


def check_shares(resources: ResourcesConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a share that no node could ever give, instead of waiting for it for ever."""
    for kind, share in resources.shares().items():
        slot = slot_of(share)
        for field, resource, asked in (("cpus", "CPU", slot.cpus), ("gpus", "GPU", slot.gpus)):
            largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
            if asked > largest:
                shown = getattr(share, field)
                raise ClusterError(
                    f"resources.{kind}.{field}: {shown if shown == AUTO else format(shown, 'g')} asked for, but the largest "
                    f"node has {largest:g} {resource}s"
                )
        found = room(nodes, slot.cpus, slot.gpus)
        if not found:
            raise ClusterError(f"resources.{kind}: no node has both {slot.cpus} CPUs and {slot.gpus:g} GPU")
        fewest = (share.min_workers if isinstance(share, TrainingShare) else None) or slot.workers
        if found < fewest:
            each = replace(slot, workers=1)
            raise ClusterError(f"resources.{kind}.workers: {fewest} of {each} asked for, but there is room for {found}")
