"""The training loop: SGD with momentum and weight decay, cosine with optional warm-up, masks that hold."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.core.data.augment import Augmentation
from raylth.core.data.dataset import Split
from raylth.core.masks import apply_mask, check_mask
from raylth.core.modes import in_mode
from raylth.seeding import derive_seed
from raylth.steps import learning_rate, steps_per_epoch

__all__ = ["Diverged", "Recipe", "Snapshot", "TrainState", "evaluate", "score", "train"]


class Diverged(RuntimeError):
    """The training loss became NaN or infinite; the text names the epoch."""


@dataclass(frozen=True)
class Recipe:
    """How one training runs; together with weights, data, seed and mask it decides the result."""

    epochs: int  # trained now
    lr: float  # peak of the cosine
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on every parameter
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    schedule_epochs: int | None = None  # length of the whole cosine; None: `epochs`
    schedule_start: int = 0  # epochs of the schedule that already lie behind


@dataclass(frozen=True)
class TrainState:
    """Where a training stands between two steps: all that another process needs to go on with the same bits.

    Order, flips, crops and learning rate follow from seed, epoch and step, so they are not part of it.
    """

    epochs: int  # completed in this training
    step: int  # steps taken of the next one
    losses: list[float]  # of the completed epochs
    loss_sum: float  # over the samples of the next one
    weights: dict[str, Tensor]  # parameters and buffers
    momentum: dict[str, Tensor]  # parameter's name -> momentum buffer; empty before the first step


Snapshot = Callable[[], TrainState]


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    augment: str = "none",
    mask: Mapping[str, Tensor] | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    on_step: Callable[[int, int, Snapshot], None] | None = None,
    state: TrainState | None = None,
) -> list[float]:
    """Train `model` in place for `recipe.epochs` epochs and return each epoch's mean training loss (nats).

    Every epoch draws its order, flips and crops from `derive_seed(seed, role, epoch)`, where epochs count from
    `recipe.schedule_start`. `augment` is "none" or "flip_crop". With a `mask`, pruned weights are exactly 0 before the
    first forward pass, after every step and at the end, so neither momentum nor weight decay revives them.
    `on_epoch(completed, loss)` is called after each epoch with the number of epochs completed, and
    `on_step(completed, step, snapshot)` after each step, with what copies the training's state; what it raises ends the
    training. Given such a `state`, `model` goes on from there and ends with the same bits (on the same hardware).

    Raises Diverged at the end of an epoch whose mean loss is not finite.
    """
    if split.x.ndim == 4:
        model.to(memory_format=torch.channels_last)  # 12 to 20 % faster on a CPU, measured
    masked, alive = _prepare_mask(model, mask)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    if state is not None:
        _restore(model, optimizer, state)
    per_epoch = steps_per_epoch(len(split), recipe.batch_size)
    device = split.y.device
    losses = list(state.losses) if state else []
    first, loss_before = (state.step, state.loss_sum) if state else (0, 0.0)
    model.train()
    for completed in range(len(losses), recipe.epochs):
        epoch = recipe.schedule_start + completed
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        order = torch.randperm(len(split), generator=generator).to(device)
        draws = Augmentation.draw(len(split), seed, epoch, device) if augment == "flip_crop" else None
        loss_sum = torch.full((), loss_before, dtype=torch.float64, device=device)
        for step, index in enumerate(order.split(recipe.batch_size)[first:], start=first):
            optimizer.param_groups[0]["lr"] = _rate(recipe, epoch * per_epoch + step, per_epoch)
            x = split.x[index]
            x = split.normalise(x if draws is None else draws(x, index))
            loss = F.cross_entropy(model(x), split.y[index], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if masked:
                with torch.no_grad():
                    torch._foreach_mul_(masked, alive)
            loss_sum += loss.detach() * len(index)
            if on_step is not None and step + 1 < per_epoch:
                on_step(completed, step + 1, partial(_snapshot, model, optimizer, losses, step + 1, loss_sum))
        first, loss_before = 0, 0.0
        losses.append(float(loss_sum) / len(split))
        if not math.isfinite(losses[-1]):
            raise Diverged(f"training diverged in epoch {epoch + 1}: the mean loss is {losses[-1]}")
        if on_epoch is not None:
            on_epoch(completed + 1, losses[-1])
        if on_step is not None and completed + 1 < recipe.epochs:
            on_step(completed + 1, 0, partial(_snapshot, model, optimizer, losses, 0, torch.zeros(())))
    if mask is not None:
        check_mask(model.state_dict(), mask)
    return losses


def _rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """Return the learning rate of a step, counted from the schedule's start."""
    return learning_rate(
        step,
        total_steps=(recipe.schedule_epochs or recipe.epochs) * per_epoch,
        peak=recipe.lr,
        warmup_steps=recipe.warmup_epochs * per_epoch,
    )


def _snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float], step: int, loss_sum: Tensor
) -> TrainState:
    """Copy the state of a training that has taken `step` steps of the epoch after those in `losses`."""
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    buffers = {name: optimizer.state[parameter].get("momentum_buffer") for name, parameter in model.named_parameters()}
    momentum = {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}
    return TrainState(len(losses), step, list(losses), float(loss_sum), weights, momentum)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Put a training back where it was; buffers lie in memory as their parameters do."""
    model.load_state_dict(state.weights)
    for name, parameter in model.named_parameters():
        if name in state.momentum:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(state.momentum[name]).detach()


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, batch_size: int = 1000) -> tuple[float, float]:
    """Return (mean cross-entropy in nats, accuracy in percent) of `model` in eval mode on a whole split.

    The model's training flags are left as they were.
    """
    loss = torch.zeros((), dtype=torch.float64, device=split.y.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.y.device)
    with in_mode(model, training=False):
        for start in range(0, len(split), batch_size):
            x, y = split.batch(slice(start, start + batch_size))
            logits = model(x)
            loss += F.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
    return float(loss) / len(split), 100.0 * int(correct) / len(split)


def score(logits: Tensor, y: Tensor) -> tuple[float, float]:
    """Return (mean cross-entropy in nats, accuracy in percent) of predictions (N, classes) for labels (N,)."""
    loss = F.cross_entropy(logits.double(), y)
    return float(loss), 100.0 * int((logits.argmax(1) == y).sum()) / len(y)


def _prepare_mask(model: nn.Module, mask: Mapping[str, Tensor] | None) -> tuple[list[Tensor], list[Tensor]]:
    """Zero the pruned weights of `model`; return its masked parameters and their masks as factors 0 and 1."""
    if mask is None:
        return [], []
    parameters = dict(model.named_parameters())
    unknown = [name for name in mask if name not in parameters]
    if unknown:
        raise ValueError(f"the mask names {unknown[0]!r}, which is not a parameter of the network")
    device = next(model.parameters()).device
    mask = {name: alive.to(device) for name, alive in mask.items()}
    model.load_state_dict(apply_mask(model.state_dict(), mask))
    masked: list[Tensor] = [parameters[name] for name in mask]
    return masked, [torch.zeros_like(parameters[name]).masked_fill_(mask[name], 1.0).detach() for name in mask]
