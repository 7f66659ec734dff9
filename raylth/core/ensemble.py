"""What several networks are together: the ensemble's accuracy, and how much its members differ (paper, Table 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FLOOR", "EnsembleMetrics", "calibration_error", "ensemble_metrics", "kl_divergence"]

FLOOR = 1e-12  # of a probability under a logarithm: a one-hot against another has a KL of 27.6 nats, not infinity
BINS = 15  # of the calibration error


@dataclass(frozen=True)
class EnsembleMetrics:
    """Accuracies in percent, divergences and likelihoods in nats, the rest as shares."""

    members: int
    mean_accuracy: float
    ensemble_accuracy: float  # of the mean of the members' probabilities
    disagreement: float  # share of samples on which two members predict different classes, mean over pairs
    kl: float  # mean over pairs and samples, both directions averaged
    js: float  # mean over pairs and samples; at most ln 2
    mean_nll: float
    ensemble_nll: float
    mean_calibration_error: float
    ensemble_calibration_error: float


def ensemble_metrics(probabilities: Tensor, labels: Tensor) -> EnsembleMetrics:
    """Measure an ensemble from its members' predicted probabilities, (members, samples, classes), and labels, (samples,).

    KL(p, q) = sum over classes of p (ln p - ln q), with probabilities under a logarithm floored at 1e-12; JS(p, q) is the
    mean of KL(p, m) and KL(q, m) for m = (p + q) / 2. Raises ValueError for fewer than two members or shapes that do not fit.
    """
    if probabilities.ndim != 3 or len(probabilities) < 2 or probabilities.shape[1:2] != labels.shape:
        shapes = f"{tuple(probabilities.shape)} and {tuple(labels.shape)}"
        raise ValueError(
            f"an ensemble is (members > 1, samples, classes) probabilities and (samples,) labels, found {shapes}"
        )
    members = probabilities.double()
    together = members.mean(dim=0)
    predicted = members.argmax(dim=2)
    pairs = [(i, j) for i in range(len(members)) for j in range(i)]
    differ = [(predicted[i] != predicted[j]).double().mean() for i, j in pairs]
    kl, js = [], []
    for i, j in pairs:
        p, q = members[i], members[j]
        middle = (p + q) / 2
        kl.append((kl_divergence(p, q) + kl_divergence(q, p)).mean() / 2)
        js.append((kl_divergence(p, middle) + kl_divergence(q, middle)).mean() / 2)
    return EnsembleMetrics(
        members=len(members),
        mean_accuracy=_percent(predicted == labels),
        ensemble_accuracy=_percent(together.argmax(dim=1) == labels),
        disagreement=_mean(differ),
        kl=_mean(kl),
        js=_mean(js),
        mean_nll=_mean([_nll(member, labels) for member in members]),
        ensemble_nll=float(_nll(together, labels)),
        mean_calibration_error=_mean([calibration_error(member, labels) for member in members]),
        ensemble_calibration_error=float(calibration_error(together, labels)),
    )


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p, q) in nats along the last axis; probabilities under a logarithm are floored at 1e-12."""
    return (p * (p.clamp_min(FLOOR).log() - q.clamp_min(FLOOR).log())).sum(dim=-1)


def calibration_error(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the expected calibration error of (samples, classes) probabilities: 15 bins of equal width (Guo et al. 2017)."""
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).to(probabilities.dtype)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gap = torch.zeros(BINS, dtype=probabilities.dtype, device=probabilities.device)
    gap.index_add_(0, bins, correct - confidence)
    return gap.abs().sum() / len(labels)


def _nll(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -probabilities.gather(1, labels[:, None]).clamp_min(FLOOR).log().mean()


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())


def _percent(correct: Tensor) -> float:
    return float(100 * correct.double().mean())
