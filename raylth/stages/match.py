"""Stage `match`: theta_A(T), theta_B(i) -> the permutation of A's units that lines up with B's."""

import time

import torch
from torch import nn

from raylth.core.matching import match_activations
from raylth.core.permutation import Permutation, derive_spec
from raylth.stages.context import Context
from raylth.stages.stage import Artefact, Stage
from raylth.stages.training import load_network, new_network, state_arrays

__all__ = ["PermutationBroken", "match"]

BATCH_SIZE = 500  # samples per forward pass; only the order of float64 sums depends on it
TOLERANCE = 1e-3  # on |f(pi(A)) - f(A)|, relative to the largest logit


class PermutationBroken(RuntimeError):
    """A permuted network that does not compute the function of the one it came from."""


def match(stage: Stage, context: Context) -> dict[str, Artefact]:
    """Match A to B on training samples without augmentation, and prove that pi(A) is still A before publishing pi."""
    start = time.perf_counter()
    network_a = load_network(stage.settings, context, stage.parents["a"])
    network_b = load_network(stage.settings, context, stage.parents["b"])
    samples, train = stage.settings["samples"], context.train
    first, _ = train.batch(slice(0, 2))
    spec = derive_spec(network_a, first)
    batches = (train.batch(slice(begin, min(begin + BATCH_SIZE, samples)))[0] for begin in range(0, samples, BATCH_SIZE))
    result = match_activations(network_a, network_b, spec, batches)
    moved = new_network(stage.settings, 0, context.device)
    _prove(network_a, moved, result.permutation, train.batch(slice(0, 64))[0])
    metrics = {
        "objective": result.objective,
        "samples": samples,
        "fixed_share": {
            group: float((perm == torch.arange(len(perm))).float().mean()) for group, perm in result.permutation.perms.items()
        },
        "seconds": time.perf_counter() - start,
        "epochs": 0,
    }
    return {stage.key: Artefact({"permutation": state_arrays(dict(result.permutation.perms))}, metrics)}


@torch.inference_mode()
def _prove(network: nn.Module, moved: nn.Module, permutation: Permutation, x: torch.Tensor) -> None:
    """Raise PermutationBroken unless pi(A), written into `moved`, gives A's logits on a batch (B, *in_shape)."""
    moved.load_state_dict(permutation.apply(network.state_dict()))
    expected, found = network.eval()(x), moved.eval()(x)
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not error <= TOLERANCE:
        raise PermutationBroken(f"f(pi(A)) differs from f(A) by {error:.2g} of the largest logit; pi was not published")
