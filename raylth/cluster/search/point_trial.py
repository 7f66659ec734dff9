"""The Tune trial of a search: trains the networks of one point, and reports their accuracy during training."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from raylth.cluster.nodes.preflight import compare, versions
from raylth.cluster.slots import slot_of
from raylth.cluster.worker import gpu
from raylth.cluster.worker.draining import Drain
from raylth.cluster.worker.payload import SearchShared
from raylth.config.overrides import changed
from raylth.config.sweep import SweepConfig
from raylth.store import Lease, Store

if TYPE_CHECKING:
    from raylth.stages import Context, Stage

__all__ = ["EPOCHS", "PointTrial"]

EPOCHS = "epochs"  # by which trainings are compared
DRAIN_SECONDS = 150.0  # after which a machine that was to go has not gone
LEASE_SECONDS = 1.0  # between two looks at what another trial computes


class Clock:
    """Counts the epochs of a point's arms, one after another, and reports what they reach to Tune.

    Tune compares trials at equal counts of epochs, so every trial reports at the same ones, whatever the store holds of it.
    All have the arms in the same order, which the cells of the sweep decide and no setting of a space. The accuracy is the
    mean over the networks that were begun. Each count is reported once, and they grow.
    """

    def __init__(self, put: Callable[[dict[str, Any]], None]) -> None:
        self.put = put
        self.epochs, self.reported = 0, 0  # of the networks that ended; at the last report
        self.accuracies: list[float] = []
        self.sparsities: list[float] = []

    def measure(self, epoch: int, accuracy: float) -> None:
        """Report the accuracy of the network that is trained now, after an epoch of its own."""
        self._report(self.epochs + epoch, [*self.accuracies, accuracy], {"finished": False})

    def end(self, epochs: int, metrics: dict[str, Any], *, is_last: bool) -> None:
        """Report a network's end; one that diverged has learned nothing."""
        self.epochs += epochs
        self.accuracies.append(metrics.get("test_accuracy") or 0.0)
        self.sparsities.append(metrics.get("model_sparsity") or 0.0)
        mean = sum(self.sparsities) / len(self.sparsities)
        ended = {"model_sparsity": mean, "finished": True, "done": True} if is_last else {"finished": False}
        self._report(self.epochs, self.accuracies, ended)

    def _report(self, epochs: int, accuracies: Sequence[float], how: dict[str, Any]) -> None:
        if epochs > self.reported:
            self.reported = epochs
            self.put({"accuracy": sum(accuracies) / len(accuracies), EPOCHS: epochs, **how})


class PointTrial(tune.Trainable):
    """Trains the networks of one point, and reports their accuracy on the holdout during training.

    They are stages as any: what the store holds already is not trained, and what several points share is trained once. The
    training runs in a thread that waits at each report until Tune wants the next.
    """

    def setup(self, config: dict[str, Any], shared: SearchShared, arms: list[str]) -> None:  # type: ignore[override]
        """Take the handles."""
        compare(shared.versions, {ray.util.get_node_ip_address(): versions()})  # of a machine that came later
        self.shared, self.arms, self.drain = shared, arms, Drain()
        gpu.see_only(ray.get_gpu_ids())
        self.store = Store(shared.root)
        self.context_of: Context | None = None
        self.thread: threading.Thread | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next point into the same process."""
        self._stop_training()
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the next report."""
        if self.thread is None:
            self.reports: queue.Queue[dict[str, Any] | BaseException] = queue.Queue(maxsize=1)
            self.is_over = threading.Event()
            self.thread = threading.Thread(target=self._train, daemon=True)
            self.thread.start()
        report = self.reports.get()
        if isinstance(report, BaseException):
            raise report
        return report

    def cleanup(self) -> None:
        """End the training that Tune stopped."""
        self._stop_training()

    def _stop_training(self) -> None:
        if self.thread is None:
            return
        self.is_over.set()
        while self.thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self.reports.get(timeout=0.05)
        self.thread = None

    def _train(self) -> None:
        from raylth.stages import Preempted

        try:
            self._train_all()
        except Preempted as error:
            if not self.is_over.is_set():  # the machine is to go, and what was trained is saved
                self.is_over.wait(DRAIN_SECONDS)  # Ray reports the machine as gone, which Tune does not count as a failure
                if not self.is_over.is_set():
                    self.reports.put(error)
        except BaseException as error:  # the thread that waits raises it
            self.reports.put(error)

    def _train_all(self) -> None:
        """Compute all stages of the point that the store lacks, and report."""
        import torch

        from raylth.stages import divergence, make_plan

        config = SweepConfig.model_validate(self.shared.config)
        torch.set_num_threads(config.resources.sparse.cpus)
        plan = make_plan(changed(config, {**self.config, "sparse.arms": self.arms}))
        left = sum(stage.kind == "sparse" for stage in plan.stages)
        clock = Clock(self.reports.put)
        for stage in plan.stages:
            self._compute(stage, clock)
            metrics = self.store.metrics(stage.key)
            if stage.kind == "sparse":
                for point in metrics.get("curve", []):  # of a training that the store held already, none is reported yet
                    self._report(stage, clock, point)
                left -= 1
                clock.end(stage.epochs, metrics, is_last=left == 0)
            elif divergence(metrics) is not None:  # of a network that all arms begin with
                report = {"accuracy": 0.0, "model_sparsity": 0.0, EPOCHS: 1}
                self.reports.put({**report, "finished": True, "done": True})
                return

    def _report(self, stage: "Stage", clock: "Clock", point: dict[str, Any]) -> None:
        """Report a point of an arm's curve, if it is one at which every trial reports."""
        every, epoch = self.shared.every, point["epoch"]
        if stage.kind == "sparse" and "test_accuracy" in point and every and epoch % every == 0 and epoch < stage.epochs:
            clock.measure(epoch, point["test_accuracy"])

    def _compute(self, stage: "Stage", clock: "Clock") -> None:
        """Compute one stage, unless the store has it, or another trial is at it."""
        from raylth.stages import Preempted, run_stage

        while not self.store.has(stage.key):
            if self._must_stop():
                raise Preempted("the trial was stopped")
            with Lease(self.store, stage.key) as lease:
                if not lease.held:
                    time.sleep(LEASE_SECONDS)
                    continue
                try:
                    run_stage(stage, self._context(stage, clock))
                except Preempted:
                    if self.is_over.is_set():  # a trial that was stopped is not continued
                        self.store.drop_state(stage.key)
                    raise

    def _context(self, stage: "Stage", clock: "Clock") -> "Context":
        """Return what a stage runs with; arms report as they are evaluated."""
        from raylth.stages import make_context

        if self.context_of is None:
            resources = SweepConfig.model_validate(self.shared.config).resources
            slot = slot_of(resources.sparse)
            self.context_of = make_context(
                self.store,
                ray.get(self.shared.dataset[0]),
                data_sha256=self.shared.data_sha256,
                device=gpu.device(slot.gpus),
                evaluate_every=self.shared.every,
                state_every=resources.state_every,
                state_seconds=resources.state_seconds,
                stopping=self._must_stop,
            )

        return replace(self.context_of, measured=lambda key, point: self._report(stage, clock, point))

    def _must_stop(self) -> bool:
        return self.is_over.is_set() or self.drain()
