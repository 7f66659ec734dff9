"""Runs one stage, or a whole plan one stage after another in this process."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from raylth.config.types import AUTO
from raylth.core.training.engines.program import EngineName
from raylth.core.training.loop import Diverged
from raylth.stages.async_writes import Uploads
from raylth.stages.context import Context, make_context
from raylth.stages.graph import Graph
from raylth.stages.kinds import kind_of
from raylth.stages.planning.network_checks import check_networks, keep_checked
from raylth.stages.planning.plan import Plan
from raylth.stages.same_data import load_same_data
from raylth.stages.stage import Artefact, Stage, finite
from raylth.stages.training import Trainee, fit
from raylth.store import BrokenArtefact, DiskLocation, Store

__all__ = ["StageFailed", "divergence", "run_plan", "run_stage", "run_together", "scan"]


class StageFailed(RuntimeError):
    """A stage that cannot be computed from its inputs; one line that says why."""


def run_stage(stage: Stage, context: Context) -> str | None:
    """Compute a stage and publish what it makes, its own artefact last; returns at once when everything is there.

    Returns None, or how the training diverged: that is published too, as the stage's result without weights.
    Raises BrokenArtefact naming the parent when one cannot be read, StageFailed when the parents were made from other
    data, Preempted when the process must stop, and whatever the stage itself raises.
    """
    is_there, reason = _already(stage, context)
    if is_there:
        return reason
    _check_parents(stage, context)
    with Uploads() as uploads:
        try:
            artefacts = _computed(stage, _behind(context, uploads, stage.kind))
        except Diverged as error:
            reason, artefacts = str(error), _diverged(stage, error)
    _publish(artefacts, stage, context)
    return reason


def run_together(stages: Sequence[Stage], context: Context) -> list[str | Exception | None]:
    """Compute trainings that are alike as one program, and publish what each makes.

    Returns for each what `run_stage` returns, or what it would raise. Raises NotPackable when the networks cannot be trained
    together, Preempted when the process must stop, and what ends them all.
    """
    outcomes: dict[str, str | Exception | None] = {}
    trainees = []
    with Uploads() as uploads:
        behind = _behind(context, uploads, stages[0].kind)
        for stage in stages:
            try:
                is_there, reason = _already(stage, context)
                if is_there:
                    outcomes[stage.key] = reason
                else:
                    _check_parents(stage, context)
                    trainees.append(_prepared(stage, behind))
            except Exception as error:  # of this stage alone
                outcomes[stage.key] = error
        found = fit(trainees, behind) if trainees else []
    for trainee, metrics in zip(trainees, found, strict=True):
        stage = trainee.stage
        try:
            if isinstance(metrics, Diverged):
                artefacts, outcomes[stage.key] = _diverged(stage, metrics), str(metrics)
            else:
                artefacts, outcomes[stage.key] = trainee.finish(metrics), None
            _publish(artefacts, stage, context)
        except Exception as error:  # of this stage alone
            outcomes[stage.key] = error
    return [outcomes[stage.key] for stage in stages]


def _computed(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Compute a stage by itself; a training that diverges raises Diverged."""
    kind = kind_of(stage.kind)
    if kind.compute is not None:
        return kind.compute(stage, context)
    trainee = _prepared(stage, context)
    (found,) = fit([trainee], context)
    if isinstance(found, Diverged):
        raise found
    return trainee.finish(found)


def _prepared(stage: Stage, context: Context) -> Trainee:
    prepare = kind_of(stage.kind).prepare
    if prepare is None:
        raise StageFailed(f"{stage.name} is not a training")
    return prepare(stage, context)


def _already(stage: Stage, context: Context) -> tuple[bool, str | None]:
    """Whether everything that a stage makes is in the store, and how its training diverged, if it did."""
    store = context.store
    if store.has(stage.key) and (reason := divergence(store.metrics(stage.key))) is not None:
        return True, reason
    is_there = all(store.has(key) for key in stage.produces)
    if is_there and context.team.rank == 0:
        store.drop_state(stage.key)  # of a process that ended just after publishing
    return is_there, None


def _check_parents(stage: Stage, context: Context) -> None:
    for role, key in stage.parents.items():
        found = context.store.metrics(key)["data_sha256"]
        if found != context.data_sha256:
            raise StageFailed(
                f"{stage.name}: its parent {role!r} was made from data {found[:12]}, the data set now is "
                f"{context.data_sha256[:12]}: restore the old data or use another storage"
            )


def _behind(context: Context, uploads: Uploads, kind: str) -> Context:
    """Return the context of a stage whose writes continue behind it."""
    return replace(
        context, uploads=uploads, publish=lambda key, artefact: uploads.submit(lambda: _write(key, artefact, kind, context))
    )


def _diverged(stage: Stage, error: Diverged) -> dict[str, Artefact]:
    return {stage.key: Artefact({}, {"diverged": str(error)})}


def _publish(artefacts: dict[str, Artefact], stage: Stage, context: Context) -> None:
    """Publish what a stage made, its own artefact last."""
    for key, artefact in artefacts.items():
        _write(key, artefact, stage.kind, context)
    if context.team.rank == 0:
        context.store.drop_state(stage.key)


def _write(key: str, artefact: Artefact, kind: str, context: Context) -> None:
    if context.team.rank > 0:
        return
    metrics = finite({**artefact.metrics, "data_sha256": context.data_sha256})
    context.store.publish(key, kind=kind, tensors=artefact.tensors, metrics=metrics)


def divergence(metrics: dict[str, Any]) -> str | None:
    """Return how a training diverged, None when it did not, from an artefact's metrics."""
    found: str | None = metrics.get("diverged")
    return found


def scan(plan: Plan, store: Store, note: Callable[[str], None] = lambda line: None, *, thorough: bool | None = None) -> Graph:
    """Find what the store already holds of a plan; what is broken is set aside and named. Nothing is computed.

    `thorough` reads and hashes every byte, which is what None means for a disk; in a bucket, where reading costs money and
    the service keeps checksums of its own, the files' sizes are compared, and bytes are verified when they are used.
    `note` is called with one line per broken artefact.
    """
    if thorough is None:
        thorough = isinstance(store.root, DiskLocation)
    held = store.held()
    published = [(stage, key) for stage in plan.stages for key in stage.produces if key in held]

    def look(entry: tuple[Stage, str]) -> dict[str, Any] | BrokenArtefact:
        try:
            metrics: dict[str, Any] = store.verify(entry[1], None if thorough else held[entry[1]])
            return metrics
        except BrokenArtefact as broken:
            return broken

    done, made_from, diverged = set(), {}, {}
    with ThreadPoolExecutor(store.root.parallel) as pool:
        for (stage, key), found in zip(published, pool.map(look, published), strict=True):
            if isinstance(found, BrokenArtefact):
                note(f"{stage.name}: {found}; set aside as {store.set_aside(key)}, will be computed again")
                continue
            done.add(key)
            if "data_sha256" in found:
                made_from[key] = str(found["data_sha256"])
            if (reason := divergence(found)) is not None and key == stage.key:
                diverged[key] = reason
    graph = Graph(plan.stages, done, diverged)
    graph.made_from = made_from
    for key in store.states() & graph.cached:
        store.drop_state(key)
    return graph


def run_plan(plan: Plan, store: Store, on_stage: Callable[[Stage], None] = lambda stage: None) -> Graph:
    """Run a plan in this process on the CPU; a failed stage blocks its descendants, everything else is finished.

    `on_stage` is called after each stage that was run. Returns the final graph. Raises ValueError as `check_networks` and
    DataError as `load_same_data` do, before anything is trained.
    """
    graph = scan(plan, store)
    networks = check_networks(plan, store)
    dataset = load_same_data(plan, graph, store)
    if graph.finished or dataset is None:
        return graph
    keep_checked(store, networks)
    asked = plan.config.resources.engine
    engine: EngineName = "eager" if asked == AUTO else asked
    context = make_context(store, dataset, evaluate_every=plan.config.log.evaluate_every, engine=engine)
    torch.set_num_threads(1)
    while (stage := graph.next_ready()) is not None:
        try:
            reason = run_stage(stage, context)
            graph.num_computed += 1
            if reason is None:
                graph.finish(stage.key)
            else:
                graph.diverge(stage.key, reason)
        except BrokenArtefact as broken:
            store.set_aside(broken.key)
            graph.retry(stage.key)
            graph.lose(broken.key)
        except Exception as error:  # whatever a stage raises blocks its descendants only
            graph.fail(stage.key, f"{type(error).__name__}: {error}".splitlines()[0])
        on_stage(stage)
    return graph
