"""The Ray task: one stage that trains nothing, in a process that Ray keeps for the next one."""

import os
from collections.abc import Mapping
from typing import Any

import ray

from raylth.cluster.worker.payload import Work
from raylth.cluster.worker.stage_runner import StageRunner

__all__ = ["end_process", "run_task"]

_runners: dict[str, StageRunner] = {}  # of this process: the run that it works for -> what it has loaded for it


def run_task(run: str, shared: list[Any], work: Work, checkpoints: Mapping[str, Any]) -> dict[str, Any]:
    """Run the one stage of `work`, which belongs to a run; returns its outcome and notes as a trial does.

    `shared` holds the reference to the run's `Shared`, which is read once in a process. `checkpoints` maps the stage's
    parents to references of what the object store has of them. A stage's error is a result, not the end of the process.
    """
    if run not in _runners:
        _runners.clear()
        runner = StageRunner()
        runner.begin(ray.get(shared[0]))
        _runners[run] = runner
    runner = _runners[run]
    runner.work = work
    runner.reader.references = dict(checkpoints)
    with runner.working():
        outcome = runner.run_one(work.stages[0])
    return {"outcomes": [outcome], "notes": list(runner.notes)}


def end_process() -> None:
    """End this process, which Ray would keep, and with it what it holds of a GPU."""
    os._exit(0)
