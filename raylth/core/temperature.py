"""The temperature of a network's predictions: what its logits are divided by for the smallest loss (Guo et al. 2017).

An interpolated network's logits have another scale than its ends', so a part of a loss barrier is miscalibration, which a
temperature for each network takes away (Ito et al. 2025, arXiv 2510.08023). No temperature changes a prediction.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_fitted", "fit_temperature", "halves", "scaled_loss"]

LOWEST, HIGHEST = 0.01, 1000.0  # temperatures, in root mean squares of the logits less the label's
STEPS = 200  # at most; Newton's method takes about ten
PRECISION = 1e-12  # of the temperature, relative


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T > 0 that minimises the mean cross-entropy of `logits` / T, to a relative precision of 1e-12.

    `logits` are (samples, classes), `labels` (samples,) classes; computed in float64. The loss is convex in 1 / T, so T is
    the global minimum. Where that is at 0 (every sample's label has the largest logit) or at infinity (labels' logits are
    not above the others on average), T is the end of its range: 0.01 or 1000 times the root mean square of the logits less
    the label's, or 1 if that lies beyond. T is 1 where every T gives the same loss (a single class, constant logits), and
    NaN for logits that are not finite. Logits times c have c times the T, unless it is 1 for one of these reasons.
    Raises ValueError for shapes that do not fit, and for no samples.
    """
    if logits.ndim != 2 or logits.shape[:1] != labels.shape or not logits.numel():
        raise ValueError(
            f"a temperature is fitted on (samples, classes) logits and (samples,) labels, found {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not logits.isfinite().all():
        return math.nan
    z = logits.double()
    z = z - z.gather(1, labels[:, None])  # (N, classes), how far each class is above the label
    size = z.square().mean().sqrt().item()
    lowest, highest = min(LOWEST * size, 1.0), max(HIGHEST * size, 1.0)
    if _derivatives(z, 1 / highest)[0] >= 0:
        return highest
    if _derivatives(z, 1 / lowest)[0] <= 0:
        return lowest
    return 1 / _root(z, 1 / highest, 1 / lowest)


def cross_fitted(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return (temperature, mean cross-entropy in nats at it) of (samples, classes) logits, with no sample at its own fit.

    Each of the two `halves` is measured at the temperature fitted on the other; the loss is the mean over all samples, the
    temperature the geometric mean of the two. NaN where logits are not finite. Raises ValueError for fewer than two samples.
    """
    first = halves(labels)
    fitted, total = [], 0.0
    for own in (first, ~first):
        fitted.append(fit_temperature(logits[~own], labels[~own]))
        total += scaled_loss(logits[own], labels[own], fitted[-1]) * int(own.sum())
    return math.sqrt(fitted[0]) * math.sqrt(fitted[1]), total / len(labels)


def halves(labels: Tensor) -> Tensor:
    """Return which of the samples (N,) bool are of the first half: every second of each class, and as many in all.

    Each class, and the whole, is cut to within one sample; which sample it is follows from the order of `labels` (N,) alone.
    """
    order = labels.argsort(stable=True)
    first = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    first[order[::2]] = True
    return first


def scaled_loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Return the mean cross-entropy (nats) of (samples, classes) logits that are divided by a temperature, in float64."""
    return float(F.cross_entropy(logits.double() / temperature, labels))


def _root(z: Tensor, low: float, high: float) -> float:
    """Return the 1 / T between `low` and `high` at which the loss has no slope, by Newton's method inside the bracket."""
    inverse = min(max(1.0, low), high)
    for _ in range(STEPS):
        slope, curvature = _derivatives(z, inverse)
        if slope < 0:
            low = inverse
        else:
            high = inverse
        step = inverse - slope / curvature if curvature > 0 else math.inf
        if abs(step - inverse) <= PRECISION * inverse:
            return min(max(step, low), high)
        inverse = step if low < step < high else math.sqrt(low * high)  # too far from the minimum for Newton's step
    return inverse


def _derivatives(z: Tensor, inverse: float) -> tuple[float, float]:
    """Return the loss's first and second derivative with respect to 1 / T; `z` are the logits less the label's."""
    p = torch.softmax(z * inverse, dim=1)
    mean = (p * z).sum(1)
    variance = (p * (z - mean[:, None]).square()).sum(1)
    return mean.mean().item(), variance.mean().item()
