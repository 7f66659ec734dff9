"""Learns the permutation that minimises the loss half-way between the networks.

Git Re-Basin (Ainsworth et al. 2023), Algorithm 3: a straight-through estimator whose projection is weight matching.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raylth.common.seeding import derive_seed
from raylth.core.batches import Batches, labelled
from raylth.core.matching import MatchResult
from raylth.core.matching.weight import match_weights
from raylth.core.modes import in_mode
from raylth.core.permutation import Permutation, PermutationSpec
from raylth.core.precision import precision

__all__ = ["match_straight_through"]

Batch = tuple[Tensor, Tensor]


@precision("float32")
def match_straight_through(
    model_a: nn.Module,
    model_b: nn.Module,
    spec: PermutationSpec,
    batches: Batches,
    seed: int,
    *,
    epochs: int = 5,
    lr: float = 0.05,
) -> MatchResult:
    """Find the permutation of A's units with the lowest cross-entropy at the midpoint of pi(A) and B.

    `batches` are (inputs, labels), as a DataLoader yields them, visited `epochs` times in an order drawn from `seed`. A copy
    of B's weights is trained with Adam at rate `lr` relative to each tensor's standard deviation: its gradient is that of the
    loss at (pi(A) + B) / 2, where pi is the weight matching of A to the copy. The midpoint runs with the statistics of its
    batch. Of the permutations visited, the one with the lowest mean loss over all batches is returned, never worse than that
    of weight matching; the objective is that of `match_weights` against B.
    Raises ValueError for no data, or as `match_weights` does.
    """
    batches = labelled(batches, model_b)
    if not batches:
        raise ValueError("no samples: learned matching needs at least one batch")
    state_a = {name: tensor.detach() for name, tensor in model_a.state_dict().items()}
    state_b = {name: tensor.detach() for name, tensor in model_b.state_dict().items()}
    permutation = match_weights(state_a, state_b, spec, seed).permutation
    names = [name for name, _ in model_b.named_parameters()]
    target = {name: state_b[name].clone() for name in names}
    moments = {name: (torch.zeros_like(target[name]), torch.zeros_like(target[name])) for name in names}
    rates = {name: lr * float(target[name].double().std(correction=0).clamp(min=1e-8)) for name in names}
    best, best_loss = permutation, _mean_loss(model_b, state_a, state_b, permutation, batches)
    step = 0
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, "straight_through", epoch))
        for place in torch.randperm(len(batches), generator=generator).tolist():
            step += 1
            _, slopes = _midpoint(model_b, state_a, state_b, permutation, batches[place], names)
            for name, slope in zip(names, slopes, strict=True):
                first, second = moments[name]
                first.lerp_(slope, 0.1)
                second.mul_(0.999).addcmul_(slope, slope, value=0.001)
                scaled = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-12)
                target[name] -= rates[name] * scaled
            projected = match_weights(state_a, {**state_b, **target}, spec, derive_seed(seed, step), start=permutation)
            permutation = projected.permutation
        loss = _mean_loss(model_b, state_a, state_b, permutation, batches)
        if loss < best_loss:
            best, best_loss = permutation, loss
    objective = match_weights(state_a, state_b, spec, seed, start=best, max_sweeps=0).objective
    return MatchResult(best, objective)


def _midpoint(
    model: nn.Module,
    state_a: dict[str, Tensor],
    state_b: dict[str, Tensor],
    permutation: Permutation,
    batch: Batch,
    names: Sequence[str],
) -> tuple[float, tuple[Tensor, ...]]:
    """Return the loss at (pi(A) + B) / 2 on a batch and its gradient with respect to the parameters `names`."""
    moved = permutation.apply(state_a)
    middle = {
        name: torch.lerp(moved[name], tensor, 0.5) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in state_b.items()
    }
    leaves = [middle[name].requires_grad_() for name in names]
    with in_mode(model, training=True), torch.enable_grad():
        loss = F.cross_entropy(torch.func.functional_call(model, middle, (batch[0],)), batch[1])
        slopes = torch.autograd.grad(loss, leaves) if names else ()
    return float(loss.detach()), slopes


def _mean_loss(
    model: nn.Module,
    state_a: dict[str, Tensor],
    state_b: dict[str, Tensor],
    permutation: Permutation,
    batches: Iterable[Batch],
) -> float:
    losses = [_midpoint(model, state_a, state_b, permutation, batch, ())[0] for batch in batches]
    return sum(losses) / len(losses)
