"""Stage `connect`: two networks -> loss and error on the line between them, plain, BN reset or REPAIR.

The line runs from pi(A) to B where a permutation is among the parents, else from the one as it is to the other: from dense A
to a round of IMP (paper, Figure 4a).
"""

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
    """Walk the line from `a`, permuted where there is a permutation, to `b`; measure loss (nats) and error (percent).

    Corrections use training samples without augmentation and leave the end points as they are. Barriers: paper,
    equation 3, for each correction on the training samples and on the test split.
    """
    start = time.perf_counter()
    settings = stage.settings
    a, b = (load_network(settings, context, stage.parents[role]) for role in ("a", "b"))
    if "permutation" in stage.parents:
        spec = derive_spec(a, context.train.batch(slice(0, 2))[0])
        perms = context.load(stage.parents["permutation"], "permutation")
        permutation = Permutation(spec, {group: torch.tensor(perm) for group, perm in perms.items()})
        a.load_state_dict(permutation.apply(a.state_dict()))
    samples = context.train.take(settings["samples"])
    inputs = [samples.batch(slice(begin, begin + BATCH_SIZE))[0] for begin in range(0, len(samples), BATCH_SIZE)]
    corrections = {"plain": lambda network, alpha: None, "reset": _reset(inputs), "repair": _repair(a, b, inputs)}
    points = settings["points"]
    alphas = [number / (points - 1) for number in range(points)]
    found, barriers = [], []
    for name in settings["corrections"]:
        walked = _walk(a, b, alphas, corrections[name], {"train": samples, "test": context.test})
        for where, values in walked.items():
            found += [
                {"correction": name, "split": where, "alpha": alpha, "loss": loss, "error": error}
                for alpha, (loss, error) in zip(alphas, values, strict=True)
            ]
            losses, errors = ([value[place] for value in values] for place in (0, 1))
            gaps = {"loss_barrier": barrier(losses, alphas), "error_barrier": barrier(errors, alphas)}
            barriers.append({"correction": name, "split": where, **gaps})
    metrics = {"line": found, "barriers": barriers, "seconds": time.perf_counter() - start, "epochs": 0}
    return {stage.key: Artefact({}, metrics)}


def _walk(
    a: nn.Module, b: nn.Module, alphas: list[float], correct: Correction, splits: dict[str, Split]
) -> dict[str, list[tuple[float, float]]]:
    """Return (loss, error) at every alpha on each split; each network is corrected once."""
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in splits}

    def measure(alpha: float, state: dict[str, Tensor]) -> float:
        network = copy.deepcopy(b)
        network.load_state_dict(state)
        if 0 < alpha < 1:
            correct(network, alpha)
        for name, split in splits.items():
            loss, accuracy = evaluate(network, split)
            values[name].append((loss, 100.0 - accuracy))
        return loss

    line(a.state_dict(), b.state_dict(), alphas, measure)
    return values


def _reset(inputs: list[Tensor]) -> Correction:
    return lambda network, alpha: reset_bn_stats(network, inputs)


def _repair(a: nn.Module, b: nn.Module, inputs: list[Tensor]) -> Correction:
    ends = [site_statistics(network, inputs) for network in (a, b)]
    return lambda network, alpha: repair(network, ends[0], ends[1], alpha, inputs)
