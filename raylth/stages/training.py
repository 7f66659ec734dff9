"""What dense, IMP and sparse stages share: networks in and out of the store, and trainings with their numbers."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from raylth.core.masks import Mask, mask_sparsity, model_sparsity
from raylth.core.memory import is_out_of_memory, release_memory
from raylth.core.models import init_model
from raylth.core.state import load_tensors
from raylth.core.training.dynamic import MaskUpdates
from raylth.core.training.engine_proof import usable
from raylth.core.training.engines.program import make_program
from raylth.core.training.loop import Diverged, evaluate_together, train_together
from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe, TrainState
from raylth.stages.arrays import state_arrays, to_torch
from raylth.stages.context import Context
from raylth.stages.resume import Resume, load_state
from raylth.stages.settings import NetworkSettings, TrainingSettings
from raylth.stages.stage import Artefact, Stage, finite

__all__ = ["Trainee", "fit", "keep_checkpoints", "load_mask", "load_network", "masked_trainee", "new_network"]


def new_network(model: NetworkSettings, seed: int, device: str) -> nn.Module:
    """Build a network, freshly initialised from `seed`."""
    return init_model(seed, **model.arguments()).to(device)


def load_network(model: NetworkSettings, context: Context, key: str) -> nn.Module:
    """Build a network with the weights of an artefact."""
    network = new_network(model, 0, context.device)
    load_tensors(network, to_torch(context.load(key, "weights"), context.device))
    return network


def load_mask(context: Context, key: str) -> Mask:
    """Return an artefact's mask on the context's device."""
    return to_torch(context.load(key, "mask"), context.device)


@dataclass(frozen=True)
class Trainee:
    """A network that a stage is about to train, and what becomes of it."""

    stage: Stage[TrainingSettings]
    network: nn.Module
    finish: Callable[[dict[str, Any]], dict[str, Artefact]]  # the metrics of the trained network -> what the stage publishes
    mask: Mask | None = None
    on_epoch: Callable[[int, dict[str, torch.Tensor]], None] = lambda completed, state: None  # (epochs, tensors as they are)
    not_beyond: int | None = None  # a saved state beyond that epoch is of no use
    updates: MaskUpdates | None = None  # how the mask changes, in place


def keep_checkpoints(trainee: Trainee, context: Context) -> Trainee:
    """Publish the network as it is, if its stage has a checkpoint "0", and have it published at every checkpoint epoch."""
    stage = trainee.stage

    def keep(completed: int, state: dict[str, torch.Tensor]) -> None:
        key = stage.checkpoints.get(str(completed))
        if key is not None:
            context.publish(key, Artefact({"weights": state_arrays(state)}, {"epochs": completed}))

    missing = [int(epoch) for epoch, key in stage.checkpoints.items() if not context.store.has(key)]
    keep(0, trainee.network.state_dict())
    return replace(trainee, on_epoch=keep, not_beyond=min(missing, default=None))


def masked_trainee(stage: Stage[TrainingSettings], network: nn.Module, mask: Mask) -> Trainee:
    """Return the training of a network under a mask, of which weights and mask are published."""

    def finish(metrics: dict[str, Any]) -> dict[str, Artefact]:
        tensors = {"weights": state_arrays(network.state_dict()), "mask": state_arrays(mask)}
        return {stage.key: Artefact(tensors, metrics)}

    return Trainee(stage, network, finish, mask)


def fit(trainees: Sequence[Trainee], context: Context) -> list[dict[str, Any] | Diverged]:
    """Train networks together as their stages' settings say, which are alike but for seeds and masks.

    Returns for each the metrics that every trained network has, or how it diverged. A training that another process began
    continues from its last saved state. The processes of a team all call this alike. Raises Preempted, with all states
    saved, when the process is asked to stop, and NotPackable for more than one network of a kind that cannot be trained
    together.
    """
    found = [load_state(trainee.stage.key, context, trainee.not_beyond) for trainee in trainees]
    places = [(state[0].epochs, state[0].step) if state else None for state in found]
    context.team.agree(places, "the saved states that they found")
    results: dict[int, dict[str, Any] | Diverged] = {}
    for place in dict.fromkeys(places):  # those that stand at the same step continue together
        group = [number for number, other in enumerate(places) if other == place]
        fitted = _fit_group([trainees[number] for number in group], [found[number] for number in group], context)
        results.update(zip(group, fitted, strict=True))
    return [results[number] for number in range(len(trainees))]


def _fit_group(
    trainees: Sequence[Trainee], found: Sequence[tuple[TrainState, dict[str, Any]] | None], context: Context
) -> list[dict[str, Any] | Diverged]:
    """Train networks that stand at the same step."""
    settings = trainees[0].stage.settings
    updates = [trainee.updates for trainee in trainees if trainee.updates is not None] or None
    networks = [trainee.network for trainee in trainees]
    program = Program(networks) if updates else _program(networks, settings.recipe, context)
    resume = Resume([trainee.stage.key for trainee in trainees], context)
    record = Record(trainees, program, context, [state[1] if state else None for state in found])
    outcomes = train_together(
        program,
        context.train,
        settings.recipe,
        seeds=[trainee.stage.settings.seed for trainee in trainees],
        augment=settings.augment,
        masks=[trainee.mask for trainee in trainees],
        on_epoch=record.add,
        on_step=lambda epochs, step, snapshots: resume.step(epochs, step, snapshots, record.beside),
        states=[state[0] for state in found if state] or None,
        team=context.team,
        updates=updates,
    )
    seconds = record.seconds()
    return [
        outcome if isinstance(outcome, Diverged) else record.metrics(number, seconds)
        for number, outcome in enumerate(outcomes)
    ]


class Record:
    """The curves of networks that are trained together, and how long each takes; `beside` is what their states have of it."""

    def __init__(
        self, trainees: Sequence[Trainee], program: Program, context: Context, beside: Sequence[dict[str, Any] | None]
    ) -> None:
        self.trainees, self.program, self.context = trainees, program, context
        self.recipe = trainees[0].stage.settings.recipe
        self.curves: list[list[dict[str, Any]]] = [each["curve"] if each else [] for each in beside]
        for trainee, curve in zip(trainees, self.curves, strict=True):
            context.progress(trainee.stage.key, len(curve))
            for point in curve:  # of the process that began the training
                if "test_accuracy" in point:
                    context.measured(trainee.stage.key, point)
        self.start = time.perf_counter() - (beside[0]["seconds"] if beside[0] else 0.0) * len(trainees)

    def seconds(self) -> float:
        """Return one network's share of the time so far."""
        return (time.perf_counter() - self.start) / len(self.trainees)

    def beside(self) -> list[dict[str, Any]]:
        """Return what is saved beside each network's state."""
        return [{"curve": list(curve), "seconds": self.seconds()} for curve in self.curves]

    def add(self, completed: int, losses: list[float]) -> None:
        """Add an epoch to the curves, with scores where it is evaluated; a network that diverged gets no more points."""
        points: list[dict[str, Any]] = [{"epoch": completed, "train_loss": loss} for loss in losses]
        every, team = self.context.evaluate_every, self.context.team
        if completed == self.recipe.epochs or (every and completed % every == 0):
            for point, score in zip(points, evaluate_together(self.program, self.context.test, team=team), strict=True):
                point |= {"test_loss": finite(score.loss), "test_accuracy": score.accuracy, "test_top5": score.top5}
        for number, (trainee, curve, point) in enumerate(zip(self.trainees, self.curves, points, strict=True)):
            if math.isfinite(point["train_loss"]):
                curve.append(point)
                trainee.on_epoch(completed, self.program.member(number))
                if "test_accuracy" in point:
                    self.context.measured(trainee.stage.key, point)
            self.context.progress(trainee.stage.key, 1)

    def metrics(self, number: int, seconds: float) -> dict[str, Any]:
        """Return the metrics that every trained network has."""
        trainee, curve = self.trainees[number], self.curves[number]
        return {
            "epochs": self.recipe.epochs,
            **{name: curve[-1][name] for name in ("test_accuracy", "test_top5", "test_loss", "train_loss")},
            "mask_sparsity": mask_sparsity(trainee.mask) if trainee.mask is not None else 0.0,
            "model_sparsity": model_sparsity(trainee.network, trainee.mask) if trainee.mask is not None else 0.0,
            "seconds": seconds,
            "device": torch.cuda.get_device_name() if self.context.device.startswith("cuda") else "cpu",
            "pack": len(self.trainees),
            "engine": self.program.engine,
            "workers": self.context.team.size,
            "precision": self.recipe.precision,
            "loader": self.context.train.loader,
            "curve": curve,
        }


def _program(networks: Sequence[nn.Module], recipe: Recipe, context: Context) -> Program:
    """Return networks as a program for the context's engine, or for a simpler one where that is not proved here."""
    if context.engine == "eager" or context.team.size > 1:
        return Program(networks)
    try:
        engine, passed_over = usable(context.engine, networks, recipe, context.train.in_shape)
    except Exception as error:
        if len(networks) > 1 or not is_out_of_memory(error):
            raise
        release_memory(error)  # the proof takes more than the training: in bf16 a second one, in float32
        engine, passed_over = "eager", [f"engine {context.engine!r} is not used: out of memory while it was verified"]
    for line in passed_over:
        context.note(line)
    return make_program(networks, engine)
