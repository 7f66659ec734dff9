"""Stage `connect`: theta_A(T), theta_B(i), pi -> loss and error on the line from pi(A) to B, plain, BN reset or REPAIR."""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raylth.core.batchnorm import reset_bn_stats
from raylth.core.data import Split
from raylth.core.interpolate import barrier, line
from raylth.core.permutation import Permutation, derive_spec
from raylth.core.repair import repair, site_statistics
from raylth.core.train import evaluate
from raylth.stages.context import Context
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import load_network

__all__ = ["connect"]

BATCH_SIZE = 500  # samples of one forward pass; batch statistics are taken over them

Correction = Callable[[nn.Module, float], None]  # (network at alpha, alpha): corrects it in place


def connect(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Walk the line from pi(A) to B and measure loss (nats) and error (percent) at equally spaced points.

    Corrections use training samples without augmentation and leave the end points as they are. Barriers: paper,
    equation 3, for each correction on the training samples and on the test split.
    """
    start = time.perf_counter()
    settings = stage.settings
    a, b = (load_network(settings, context, stage.parents[role]) for role in ("a", "b"))
    spec = derive_spec(a, context.train.batch(slice(0, 2))[0])
    perms = context.load(stage.parents["permutation"], "permutation")
    a.load_state_dict(Permutation(spec, {group: torch.tensor(perm) for group, perm in perms.items()}).apply(a.state_dict()))
    samples = context.train.take(settings["samples"])
    inputs = [samples.batch(slice(begin, begin + BATCH_SIZE))[0] for begin in range(0, len(samples), BATCH_SIZE)]
    corrections = {"plain": lambda network, alpha: None, "reset": _reset(inputs), "repair": _repair(a, b, inputs)}
    points = settings["points"]
    alphas = [number / (points - 1) for number in range(points)]
    found, barriers = [], []
    for name in settings["corrections"]:
        for where, split in (("train", samples), ("test", context.test)):
            values = _walk(a, b, alphas, corrections[name], split)
            found += [
                {"correction": name, "split": where, "alpha": alpha, "loss": loss, "error": error}
                for alpha, (loss, error) in zip(alphas, values, strict=True)
            ]
            losses, errors = ([value[place] for value in values] for place in (0, 1))
            gaps = {"loss_barrier": barrier(losses, alphas), "error_barrier": barrier(errors, alphas)}
            barriers.append({"correction": name, "split": where, **gaps})
    metrics = {"line": found, "barriers": barriers, "seconds": time.perf_counter() - start, "epochs": 0}
    return {stage.key: Artefact({}, metrics)}


def _walk(a: nn.Module, b: nn.Module, alphas: list[float], correct: Correction, split: Split) -> list[tuple[float, float]]:
    """Return (loss, error) at every alpha."""
    values: list[tuple[float, float]] = []

    def measure(alpha: float, state: dict[str, Tensor]) -> float:
        network = copy.deepcopy(b)
        network.load_state_dict(state)
        if 0 < alpha < 1:
            correct(network, alpha)
        loss, accuracy = evaluate(network, split)
        values.append((loss, 100.0 - accuracy))
        return loss

    line(a.state_dict(), b.state_dict(), alphas, measure)
    return values


def _reset(inputs: list[Tensor]) -> Correction:
    return lambda network, alpha: reset_bn_stats(network, inputs)


def _repair(a: nn.Module, b: nn.Module, inputs: list[Tensor]) -> Correction:
    ends = [site_statistics(network, inputs) for network in (a, b)]
    return lambda network, alpha: repair(network, ends[0], ends[1], alpha, inputs)
