"""The training loop: SGD or AdamW, cosine or steps with optional warm-up, masks that hold."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.common.seeding import derive_seed
from raylth.core.data.dataset import Split
from raylth.core.data.prefetch import Ahead, to_device
from raylth.core.masks import check_mask
from raylth.core.modes import draws_numbers, in_mode
from raylth.core.precision import precision
from raylth.core.training.data_parallel import ALONE, Team
from raylth.core.training.dynamic import MaskUpdates
from raylth.core.training.engines.program import make_steps
from raylth.core.training.packing import Program
from raylth.core.training.recipe import Recipe, TrainState
from raylth.core.training.schedule import crop_side, learning_rate, steps_per_epoch
from raylth.core.training.step import Steps

__all__ = [
    "Diverged",
    "Recipe",
    "Score",
    "Snapshot",
    "TrainState",
    "evaluate",
    "evaluate_and_predict",
    "evaluate_together",
    "evaluation_batch",
    "score",
    "train",
    "train_together",
]


MOST_INPUTS = 40_000_000  # of a batch that is evaluated: 265 images of 224 pixels


class Diverged(RuntimeError):
    """The training loss became NaN or infinite; the text names the epoch."""


Snapshot = Callable[[], TrainState]
Snapshots = Callable[[], list[TrainState]]


def train(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    augment: str = "none",
    mask: Mapping[str, Tensor] | None = None,
    on_epoch: Callable[[int, float], None] = lambda completed, loss: None,
    on_step: Callable[[int, int, Snapshot], None] = lambda completed, step, snapshot: None,
    state: TrainState | None = None,
    team: Team = ALONE,
) -> list[float]:
    """Train `model` in place for `recipe.epochs` epochs and return each epoch's mean training loss (nats).

    Every epoch draws its order, flips and crops from `derive_seed(seed, role, epoch)`, where epochs count from
    `recipe.schedule_start`. `augment` is "none" or "flip_crop". With a `mask`, pruned weights are exactly 0 before the
    first forward pass, after every step and at the end, so neither momentum nor weight decay revives them.
    `on_epoch(completed, loss)` is called after each epoch with the number of epochs completed, and
    `on_step(completed, step, snapshot)` after each step, with what copies the training's state; what it raises ends the
    training. Given such a `state`, `model` continues from there and ends with the same bits (on the same hardware). With a
    `team` the processes train it together, each with its part of every batch; all must call this alike, and all end with it.

    Raises Diverged at the end of an epoch whose mean loss is not finite.
    """
    (found,) = train_together(
        Program([model]),
        split,
        recipe,
        seeds=[seed],
        augment=augment,
        masks=[mask],
        on_epoch=lambda completed, losses: on_epoch(completed, losses[0]),
        on_step=lambda completed, step, snapshots: on_step(completed, step, lambda: snapshots()[0]),
        states=None if state is None else [state],
        team=team,
    )
    if isinstance(found, Diverged):
        raise found
    return found


def train_together(
    program: Program,
    split: Split,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    augment: str = "none",
    masks: Sequence[Mapping[str, Tensor] | None],
    on_epoch: Callable[[int, list[float]], None] = lambda completed, losses: None,
    on_step: Callable[[int, int, Snapshots], None] = lambda completed, step, snapshots: None,
    states: Sequence[TrainState] | None = None,
    team: Team = ALONE,
    updates: Sequence[MaskUpdates] | None = None,
) -> list[list[float] | Diverged]:
    """Train all members of a program in place, each as `train` would train it alone, to rounding.

    Each member has its own seed and mask; all have the same recipe, and all masks the same names or none is there. Returns
    for each member what `train` returns, or how it diverged: the others continue, and the training ends early only when none
    is left. `on_epoch` gets the losses of all members, `on_step` what copies the states of all; `states` stand at the same
    epoch and step. The networks that the program was made of have their values when this returns, also by an exception.
    A `team` of several processes trains one network. ValueError when it is not of the size that the recipe asks for. With
    `updates`, one for each member, the masks change during the training, in place: in the end they are what was found.
    """
    if recipe.unsynced_workers not in (0, team.size):
        raise ValueError(f"{recipe.unsynced_workers} processes were to train this network, and there are {team.size}")
    if split.is_images:
        program.use_channels_last()  # 12 to 20 % faster on a CPU, measured
    steps = make_steps(program, recipe, masks, split.y.device, team, updates)
    progress = Progress(program, steps, states, team, split.y.device)
    per_epoch = steps_per_epoch(len(split), recipe.batch_size, drop_last=recipe.drop_last)
    num_trained = min(len(split), per_epoch * recipe.batch_size)  # samples of an epoch
    epochs = Epochs(program, split, recipe, seeds, augment, team, steps)
    with _running(program, recipe), team.trains(program, synced=not recipe.unsynced_workers):
        for completed in range(len(progress.losses[0]), recipe.epochs):
            epoch = recipe.schedule_start + completed
            for step, x, y in epochs(epoch, progress.first, per_epoch):
                count = min(recipe.batch_size, num_trained - step * recipe.batch_size)  # of each member
                progress.loss_sums += steps(x, y, _rate(recipe, epoch * per_epoch + step, per_epoch), count) * count
                if step + 1 < per_epoch:
                    on_step(completed, step + 1, partial(progress.snapshots, step + 1))
            progress.end_epoch(epoch + 1, num_trained)
            if len(progress.diverged) == program.size:
                break
            on_epoch(completed + 1, [each[-1] for each in progress.losses])
            if completed + 1 < recipe.epochs:
                on_step(completed + 1, 0, partial(progress.snapshots, 0))
    for number, mask in enumerate(masks):
        if mask is not None and number not in progress.diverged:
            check_mask(program.member(number), mask)
    return [progress.diverged.get(number, each) for number, each in enumerate(progress.losses)]


@contextmanager
def _running(program: Program, recipe: Recipe) -> Iterator[None]:
    """Be in training mode and in a recipe's arithmetic; at the end the networks have their members' values."""
    program.network.train()
    try:
        with precision(recipe.precision):
            yield
    finally:
        program.network.zero_grad()  # they may lie in a graph's memory
        program.write_back()


class Progress:
    """How far the members of a training have come: their losses, and which of them diverged.

    `losses` has each member's mean loss of every completed epoch, `loss_sums` (K,) float64 the sums over the samples of the
    current one; `first` is the step at which the current epoch starts, 0 but for one that a state stands in.
    """

    def __init__(
        self, program: Program, steps: Steps, states: Sequence[TrainState] | None, team: Team, device: torch.device
    ) -> None:
        if states is not None:
            program.load([state.weights for state in states])
            steps.load([state.momentum for state in states])
        self.program, self.steps, self.team = program, steps, team
        self.losses = [list(state.losses) for state in states] if states else [[] for _ in range(program.size)]
        self.first = states[0].step if states else 0
        sums = [state.loss_sum for state in states] if states and team.rank == 0 else [0.0] * program.size
        self.loss_sums = to_device(torch.tensor(sums, dtype=torch.float64), device)
        self.diverged: dict[int, Diverged] = {}

    def end_epoch(self, epoch: int, num_trained: int) -> None:
        """Take the mean losses of an epoch of the schedule, and note the members whose is not finite, each once."""
        self.team.settle(self.program)
        for number, (each, loss_sum) in enumerate(zip(self.losses, self.team.sum(self.loss_sums).tolist(), strict=True)):
            each.append(loss_sum / num_trained)
            if number not in self.diverged and not math.isfinite(each[-1]):
                self.diverged[number] = Diverged(f"training diverged in epoch {epoch}: the mean loss is {each[-1]}")
        self.first, self.loss_sums = 0, torch.zeros_like(self.loss_sums)

    def snapshots(self, step: int) -> list[TrainState]:
        """Copy the states of all members, after `step` steps of the current epoch."""
        team = self.team if step else ALONE  # at an epoch's end the processes have settled already
        team.settle(self.program)
        states, sums = [], team.sum(self.loss_sums.clone()).tolist()
        for number, (losses, loss_sum, momentum) in enumerate(zip(self.losses, sums, self.steps.momentum(), strict=True)):
            weights = {name: tensor.detach().clone() for name, tensor in self.program.member(number).items()}
            buffers = {name: buffer.detach().clone() for name, buffer in momentum.items()}
            states.append(TrainState(len(losses), step, list(losses), loss_sum, weights, buffers))
        return states


class Epochs:
    """The batches of a training, epoch after epoch: what is drawn for the next one is drawn while this one is trained."""

    def __init__(
        self, program: Program, split: Split, recipe: Recipe, seeds: Sequence[int], augment: str, team: Team, steps: Steps
    ) -> None:
        self.split, self.recipe, self.seeds, self.augment, self.team, self.steps = split, recipe, seeds, augment, team, steps
        self.draws = draws_numbers(program.network)
        self.ahead = Ahead(
            lambda epoch: split.draw(seeds, epoch, augment),
            last=recipe.schedule_start + recipe.epochs - 1,
            threaded=split.y.device.type == "cuda",
        )

    def __call__(self, epoch: int, first: int, stop: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, inputs, labels) of an epoch of the schedule, steps `first` to `stop` - 1, at its resolution.

        What the network draws itself, as dropout does, is seeded for each step: it is the same in any process that continues
        from there, and another for each process of a team.
        """
        batches = self._resized(epoch).epoch(
            self.seeds, epoch, self.recipe.batch_size, augment=self.augment, first=first, stop=stop,
            part=self.team.part, drawn=self.ahead(epoch), by_member=self.steps.by_member, place=self.steps.place,
        )  # fmt: skip
        for step, (x, y) in enumerate(batches, start=first):
            if self.draws:
                torch.manual_seed(derive_seed(self.seeds[0], "draws", epoch, step, self.team.rank))
            yield step, x, y

    def _resized(self, epoch: int) -> Split:
        recipe = self.recipe
        if not recipe.first_resolution:
            return self.split
        total, last = recipe.schedule_epochs or recipe.epochs, self.split.in_shape[-1]
        side = crop_side(epoch, total_epochs=total, first=recipe.first_resolution, last=last, ramp=recipe.resolution_ramp)
        return self.split.resized(side)


def _rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """Return the learning rate of a step, counted from the schedule's start."""
    return learning_rate(
        step,
        total_steps=(recipe.schedule_epochs or recipe.epochs) * per_epoch,
        peak=recipe.lr,
        warmup_steps=recipe.warmup_epochs * per_epoch,
        decay_steps=recipe.decay_every * per_epoch,
        decay_factor=recipe.decay_factor,
        hold_steps=per_epoch if recipe.lr_interval == "epoch" else 1,
    )


class Score(NamedTuple):
    """What a network gets right of a split: mean cross-entropy (nats), top-1 and top-5 accuracy (percent)."""

    loss: float
    accuracy: float
    top5: float  # 100 where there are no more than five classes


def evaluate(model: nn.Module, split: Split, batch_size: int | None = None) -> Score:
    """Return the scores of `model` in eval mode on a whole split, in float32.

    The model's training flags are left as they were.
    """
    (found,) = evaluate_together(Program([model]), split, batch_size)
    return found


def evaluate_and_predict(model: nn.Module, split: Split, batch_size: int | None = None) -> tuple[Score, Tensor]:
    """Return what `evaluate` returns, to the bit, and the logits (N, classes) that it is of, in the order of `split.y`."""
    logits: list[Tensor] = []
    (found,) = _evaluated(Program([model]), split, batch_size, ALONE, logits)
    return found, torch.cat(logits)


def evaluate_together(program: Program, split: Split, batch_size: int | None = None, team: Team = ALONE) -> list[Score]:
    """Return for every member of a program what `evaluate` returns for it alone, to rounding.

    Each process of a `team` sees its part of the split, and all get the whole's scores. The images of a batch are shared by
    the members that are evaluated at a time, so that they take no more memory than one network alone.
    """
    return [score for part in program.evaluated() for score in _evaluated(part, split, batch_size, team)]


@torch.inference_mode()
def _evaluated(
    program: Program, split: Split, batch_size: int | None, team: Team, keep: list[Tensor] | None = None
) -> list[Score]:
    """Score the members; `keep`, if it is given, receives the first member's logits (B, classes) of every batch."""
    loss = torch.zeros(program.size, dtype=torch.float64, device=split.y.device)
    correct, among5 = (torch.zeros(program.size, dtype=torch.int64, device=split.y.device) for _ in range(2))
    with in_mode(program.network, training=False), precision("float32"):
        for x, y in split.batches(batch_size or evaluation_batch(split, program.size), team.part):
            logits = program(program.spread(x), len(y))  # (K, B, classes)
            if keep is not None:
                keep.append(logits[0])
            for number in range(program.size):
                loss[number] += F.cross_entropy(logits[number], y, reduction="sum")
            correct += (logits.argmax(2) == y).sum(1)
            best = logits.topk(min(5, logits.shape[2]), dim=2).indices  # (K, B, 5)
            among5 += (best == y[:, None]).sum((1, 2))
    found = zip(*(team.sum(counted).tolist() for counted in (loss, correct, among5)), strict=True)
    return [Score(one / len(split), 100.0 * right / len(split), 100.0 * near / len(split)) for one, right, near in found]


def evaluation_batch(split: Split, size: int = 1) -> int:
    """Return how many samples `size` networks are evaluated on at a time; vectors take no memory worth dividing."""
    batch = max(1, min(1000, MOST_INPUTS // math.prod(split.in_shape)))
    return max(1, batch // size) if split.is_images else batch


def score(logits: Tensor, y: Tensor) -> tuple[float, float]:
    """Return (mean cross-entropy in nats, accuracy in percent) of predictions (N, classes) for labels (N,)."""
    loss = F.cross_entropy(logits.double(), y)
    return float(loss), 100.0 * int((logits.argmax(1) == y).sum()) / len(y)
