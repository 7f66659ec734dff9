"""What dense, IMP and sparse stages share: networks in and out of the store, and one training with its numbers."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from raylth.core.masks import Mask, mask_sparsity, model_sparsity
from raylth.core.models import init_model
from raylth.core.train import Recipe, evaluate, train
from raylth.stages.arrays import to_torch
from raylth.stages.context import Context
from raylth.stages.resume import Resume
from raylth.stages.stage import Stage

__all__ = ["fit", "load_mask", "load_network", "new_network"]


def new_network(settings: dict[str, Any], seed: int, device: str) -> nn.Module:
    """Build the network that the settings name, freshly initialised from `seed`."""
    model = settings["model"]
    built = init_model(
        seed,
        model["name"],
        width=model["width"],
        num_classes=model["num_classes"],
        in_shape=tuple(model["in_shape"]),
    )
    return built.to(device)


def load_network(settings: dict[str, Any], context: Context, key: str) -> nn.Module:
    """Build the network that the settings name with the weights of an artefact."""
    network = new_network(settings, 0, context.device)
    network.load_state_dict(to_torch(context.load(key, "weights"), context.device))
    return network


def load_mask(context: Context, key: str) -> Mask:
    """Return an artefact's mask on the context's device."""
    return to_torch(context.load(key, "mask"), context.device)


def fit(
    network: nn.Module,
    stage: Stage,
    context: Context,
    mask: Mask | None = None,
    on_epoch: Callable[[int], None] | None = None,
    not_beyond: int | None = None,
) -> dict[str, Any]:
    """Train the network as its stage's settings say, and return the metrics that every trained network has.

    A training that another process began goes on where its last saved state stands, unless that lies beyond the epoch
    `not_beyond`. Raises Preempted, with the state saved, when the process is asked to stop.
    """
    settings = stage.settings
    recipe = Recipe(**settings["recipe"])
    resume = Resume(stage.key, context)
    found = resume.load(not_beyond)
    state, beside = found or (None, dict[str, Any](curve=[], seconds=0.0))
    curve: list[dict[str, Any]] = beside["curve"]
    context.progress(len(curve))
    start = time.perf_counter() - beside["seconds"]

    def record(completed: int, loss: float) -> None:
        point: dict[str, Any] = {"epoch": completed, "train_loss": loss}
        if completed == recipe.epochs or (context.evaluate_every and completed % context.evaluate_every == 0):
            point["test_loss"], point["test_accuracy"] = evaluate(network, context.test)
        curve.append(point)
        context.progress(1)
        if on_epoch is not None:
            on_epoch(completed)

    train(
        network,
        context.train,
        recipe,
        seed=settings["seed"],
        augment=settings["augment"],
        mask=mask,
        on_epoch=record,
        on_step=lambda epochs, step, snapshot: resume.step(
            epochs, step, snapshot, lambda: {"curve": list(curve), "seconds": time.perf_counter() - start}
        ),
        state=state,
    )
    seconds = time.perf_counter() - start
    is_cuda = context.device.startswith("cuda")
    return {
        "epochs": recipe.epochs,
        "test_accuracy": curve[-1]["test_accuracy"],
        "test_loss": curve[-1]["test_loss"],
        "train_loss": curve[-1]["train_loss"],
        "mask_sparsity": mask_sparsity(mask) if mask is not None else 0.0,
        "model_sparsity": model_sparsity(network, mask) if mask is not None else 0.0,
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "curve": curve,
    }
