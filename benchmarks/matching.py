"""Matching: one pass for all groups against the paper's procedure of one pass per site, seconds, both in one run.

The paper's published procedure runs both networks over all images once for every site and correlates that site's units
in float64; it is written again here on the same sites, fed from the same tensors, and for ResNet-20 also from PIL images
through a DataLoader. Weight matching and its time, also for wide linear layers, and the peak memory of matching on 10,000
images against 1,000, stand beside it.

    python benchmarks/matching.py [--json FILE] [--quick]
"""

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import describe, tell
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from train_cpu import PilImages, synthetic

from raylth.core import matching
from raylth.core.matching import match_activations
from raylth.core.matching.observer import Observer, rows
from raylth.core.matching.weight import match_weights
from raylth.core.models import init_model
from raylth.core.permutation import Permutation, PermutationSpec, random_permutation
from raylth.core.permutation.derive import derive_spec
from raylth.core.training.allocator import keep_freed_memory


def paper_procedure(
    a: nn.Module, b: nn.Module, spec: PermutationSpec, batches: Callable[[], Iterable[Tensor]]
) -> dict[str, Any]:
    """One pass per site: moments in float64, batch by batch, then the assignment."""
    perms = {}
    for name, group in spec.groups.items():
        assert group.site is not None
        observer, site = Observer([a, b], [group.site]), group.site
        count = 0
        first, second = torch.zeros(2 * group.size).double(), torch.zeros(2 * group.size, 2 * group.size).double()
        for x in batches():
            for _, outputs in observer.run(x):
                both = torch.cat([rows(output, site) for output in outputs], dim=1).double()
                count += len(both)
                first = first + both.sum(0)
                second = second + both.T @ both
        covariance = second / count - torch.outer(first / count, first / count)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        size = group.size
        scale = torch.outer(deviation[size:], deviation[:size])
        correlation = torch.where(scale > 1e-12, covariance[size:, :size] / scale.clamp(min=1e-12), 0.0)
        perms[name] = linear_sum_assignment(correlation.numpy(), maximize=True)[1]
    return perms


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def resnet20(rounds: int, images: int) -> dict[str, Any]:
    """ResNet-20 on CIFAR-shaped images: ours, the paper's procedure from the same tensors, and from its PIL loader."""
    a, b = (init_model(seed, "resnet20", num_classes=10, in_shape=(3, 32, 32)) for seed in (1, 2))
    data = synthetic(images)
    x = (torch.from_numpy(data.train_x).float() - 125) / 62
    spec = derive_spec(a, x[:2])
    loader: DataLoader[Any] = DataLoader(PilImages(data, None), 500, num_workers=2)
    sides: dict[str, Callable[[], Any]] = {
        "raylth": lambda: match_activations(a, b, spec, x.split(500)).permutation.perms,
        "paper, tensors": lambda: paper_procedure(a, b, spec, lambda: x.split(500)),
        "paper, PIL loader": lambda: paper_procedure(a, b, spec, lambda: (batch for batch, _ in loader)),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, Any] = {}
    for number in range(rounds + 1):
        for side, run in sides.items():
            taken, results[side] = seconds(run)
            if number:
                times[side].append(taken)
    ours, theirs = results["raylth"], results["paper, tensors"]
    medians = {side: statistics.median(values) for side, values in times.items()}
    return {
        "images": images,
        "sites": len(spec.groups),
        "seconds": {side: round(value, 3) for side, value in medians.items()},
        "ratio, same tensors": round(medians["paper, tensors"] / medians["raylth"], 2),
        "ratio, PIL loader": round(medians["paper, PIL loader"] / medians["raylth"], 2),
        "same permutation": all(np.array_equal(ours[name], theirs[name]) for name in ours),
    }


def resnet50(images: int, timed_sites: int) -> dict[str, Any]:
    """ResNet-50 at 224 px: one pass, the share of the assignment, and the paper's passes measured on some of the sites."""
    torch.manual_seed(0)
    a, b = (models.resnet50(weights=None).to(memory_format=torch.channels_last) for _ in range(2))
    spec = derive_spec(a, torch.zeros(2, 3, 224, 224))
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(20, 3, 224, 224, generator=generator).contiguous(memory_format=torch.channels_last)
    batches = [batch + number for number in range(images // 20)]
    spent = [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        taken, result = seconds(lambda: linear_sum_assignment(*arguments, **options))
        spent[0] += taken
        return result

    setattr(matching, "linear_sum_assignment", timed)  # noqa: B010
    ours, _ = seconds(lambda: match_activations(a, b, spec, batches))
    assigning = spent[0]
    setattr(matching, "linear_sum_assignment", linear_sum_assignment)  # noqa: B010
    chosen = list(spec.groups)[:: max(1, len(spec.groups) // timed_sites)]
    part = PermutationSpec({name: spec.groups[name] for name in chosen}, spec.axes)
    theirs, _ = seconds(lambda: paper_procedure(a, b, part, lambda: batches))
    per_pass = ours - assigning
    return {
        "images": images,
        "sites": len(spec.groups),
        "sites timed": len(chosen),
        "seconds": {"raylth": round(ours, 2), "paper's procedure, sites timed": round(theirs, 2)},
        "ratio": round(theirs * len(spec.groups) / len(chosen) / ours, 2),
        "assignment share at 2,000 images": round(assigning / (assigning + per_pass * 2000 / images), 4),
    }


def weights() -> dict[str, Any]:
    torch.manual_seed(0)
    states = [models.resnet50(weights=None).state_dict() for _ in range(2)]
    spec = derive_spec(models.resnet50(weights=None), torch.zeros(2, 3, 64, 64))
    times = [seconds(partial(match_weights, states[0], states[1], spec, seed))[0] for seed in range(5)]
    return {"network": "ResNet-50, two initialisations", "seconds": [round(taken, 2) for taken in times]}


def wide_classifier(name: str) -> dict[str, Any]:
    """Weight matching of a network with wide linear layers, on one thread, beside the products that it cannot do without."""
    torch.manual_seed(0)
    one, other = (getattr(models, name)(weights=None) for _ in range(2))
    spec, state = derive_spec(one, torch.zeros(2, 3, 64, 64)), one.state_dict()
    moved = random_permutation(spec, 0).apply(state)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with FlopCounterMode(display=False) as counter:
        match_weights(state, moved, spec, 0)
    rows = torch.randn(2048, 2048)
    product, _ = seconds(lambda: rows @ rows)
    taken = {
        "two initialisations": round(seconds(lambda: match_weights(state, other.state_dict(), spec, 0))[0], 1),
        "a permuted copy": round(seconds(lambda: match_weights(state, moved, spec, 0))[0], 1),
    }
    torch.set_num_threads(threads)
    return {
        "network": name,
        "seconds, one thread": taken,
        "GFLOP of one product for each place of a weight": round(counter.get_total_flops() / 1e9),
        "GFLOP/s of a large product": round(2 * 2048**3 / product / 1e9),
    }


PLANTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # how it is built, the shape of a sample
    "resnet18": (partial(models.resnet18, weights=None), (3, 64, 64)),
    "resnet50": (partial(models.resnet50, weights=None), (3, 64, 64)),
    "vit, dim 192, depth 6, 3 heads": (partial(init_model, 0, "vit", num_classes=10, in_shape=(3, 32, 32)), (3, 32, 32)),
}


def planted(name: str, rounds: int) -> dict[str, Any]:
    """Weight matching of a network with a permuted copy whose weights have noise of as much deviation as they have, beside
    the package rebasin (Git Re-Basin by tracing the modules), which solves the same problem.

    The cosine is that of all parameters of both networks, after matching; `true` with the permutation that was planted.
    """
    build, shape = PLANTED[name]
    torch.manual_seed(0)
    one, other = build().eval(), build().eval()
    x = torch.randn(2, *shape)
    spec = derive_spec(one, x)
    pi = random_permutation(spec, 0)
    noisy = {
        key: value + torch.randn_like(value) * value.std(correction=0) if value.is_floating_point() and value.ndim else value
        for key, value in one.state_dict().items()
    }
    state, moved = one.state_dict(), pi.apply(noisy)
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "raylth": lambda: _by_raylth(state, moved, spec, pi, other),
        "rebasin": lambda: _by_rebasin(build, state, moved, x),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, Any] = {"network": name, "cosine, true": round(cosine(pi.apply(state), moved, other), 3)}
    for _ in range(rounds):
        for side, run in sides.items():
            try:
                taken, found[side] = seconds(run)
            except Exception as error:  # of the other package
                found[side] = f"{type(error).__name__}: {error}"[:200]
                continue
            times[side].append(taken)
    found["seconds"] = {side: round(statistics.median(each), 2) for side, each in times.items() if each}
    if all(times.values()):
        found["ratio"] = round(found["seconds"]["rebasin"] / found["seconds"]["raylth"], 1)
    return found


def cosine(one: dict[str, Tensor], other: dict[str, Tensor], like: nn.Module) -> float:
    """Return the cosine of all parameters of two networks."""
    names = [name for name, _ in like.named_parameters()]
    first, second = (torch.cat([state[name].flatten().double() for name in names]) for state in (one, other))
    return float(first @ second / (first.norm() * second.norm()))


def _by_raylth(
    state: dict[str, Tensor], moved: dict[str, Tensor], spec: PermutationSpec, pi: Permutation, like: nn.Module
) -> dict[str, Any]:
    found = match_weights(state, moved, spec, 0).permutation
    units = sum(len(perm) for perm in pi.perms.values())
    right = sum(int((found.perms[name] == perm).sum()) for name, perm in pi.perms.items())
    return {
        "cosine": round(cosine(found.apply(state), moved, like), 3),
        "units where they were planted": round(right / units, 4),
    }


def _by_rebasin(
    build: Callable[[], nn.Module], state: dict[str, Tensor], moved: dict[str, Tensor], x: Tensor
) -> dict[str, Any]:
    from rebasin import PermutationCoordinateDescent

    ours, theirs = build().eval(), build().eval()  # theirs is moved towards ours
    ours.load_state_dict(moved)
    theirs.load_state_dict(state)
    with torch.no_grad():
        before = theirs(x)
        PermutationCoordinateDescent(ours, theirs, x, logging_level="error").rebasin()
        after = theirs(x)
    return {
        "cosine": round(cosine(theirs.state_dict(), moved, ours), 3),
        "largest change of a logit": float((after - before).abs().max() / before.abs().max()),
    }


def peak(images: int, pipe: Any) -> None:
    """Send this process's peak memory, in MB, after matching ResNet-50 on so many images made one batch at a time."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    a, b = (models.resnet50(weights=None) for _ in range(2))
    spec = derive_spec(a, torch.zeros(2, 3, 64, 64))
    match_activations(a, b, spec, (torch.randn(50, 3, 64, 64) for _ in range(images // 50)))
    status = Path("/proc/self/status").read_text()  # not ru_maxrss, which a child takes over from its parent
    pipe.send(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)  # type: ignore[index]


def memory(sizes: tuple[int, int]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    peaks = []
    for images in sizes:
        ours, theirs = context.Pipe()
        process = context.Process(target=peak, args=(images, theirs))
        process.start()
        peaks.append(round(ours.recv(), 1))
        process.join()
    return {"images at 64 px": sizes, "peak MB": peaks, "ratio": round(peaks[1] / peaks[0], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="few images: shows that it runs, measures little")
    options = parser.parse_args()
    torch.set_num_threads(2)
    keep_freed_memory()
    small = options.quick
    report = {
        "benchmark": "matching, seconds",
        "resnet20": resnet20(1 if small else 3, 500 if small else 1000),
        "resnet50 at 224 px": resnet50(20 if small else 100, 2 if small else 6),
        "weight matching": weights(),
        "weight matching beside rebasin": [
            planted(name, 1 if small or name == "resnet50" else 3) for name in list(PLANTED)[: 1 if small else None]
        ],
        "weight matching, wide": wide_classifier("mobilenet_v2" if small else "vgg11_bn"),
        "memory": memory((100, 200) if small else (1000, 10000)),
        "hardware": describe(),
    }
    tell(report, options.json)


if __name__ == "__main__":
    main()
