"""What structured masks save: dense networks against smaller ones without removed units, and on a GPU against 2:4 kernels.

Each network is timed as it is, under its mask (dense kernels, zeros and all), compact (`raylth.core.pruning.compact` after
whole units were pruned), and on a GPU with its linear layers through torch's semi-structured kernels: forward passes in
evaluation, and training steps with SGD and momentum. All kinds are timed in turn, several times; the ratio is that of the
medians, dense over the other, so that below 1 is slower than dense. On a CPU with one thread it is the processor's time that
is counted, which other processes of the machine hardly change. torch has 2:4 kernels for linear layers only, in half
precision, and their backward pass would need the pattern along both axes of a weight: convolutions stay dense, and training
steps are not timed. What each kind computes is compared with the masked network first.

    python benchmarks/structured.py [--rounds 7] [--networks mlp,resnet20,vit] [--threads 1] [--device auto] [--json FILE]
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hardware import describe, tell
from torch import Tensor, nn

from raylth.core.masks import Mask, apply_mask, full_mask, mask_sparsity
from raylth.core.models import init_model
from raylth.core.permutation import derive_spec
from raylth.core.pruning import Structure, compact, nearest_alive, prune_structured, removable_units

NETWORKS: dict[str, dict[str, Any]] = {  # the batch is for a CPU; on a GPU networks are wider, and batches too
    "mlp": {"batch": 256, "cpu": {"width": 8}, "cuda": {"width": 32}, "in_shape": (64,)},
    "resnet20": {"batch": 32, "cpu": {"width": 1}, "cuda": {"width": 4}, "in_shape": (3, 32, 32)},
    "vit": {"batch": 8, "cpu": {}, "cuda": {"width": 4}, "in_shape": (3, 32, 32)},
}
SPARSITIES = (0.5, 0.8)  # of whole units; what a network cannot have is the nearest
TWO_OF_FOUR = Structure("nm", n=2, m=4)
SECONDS = 0.3  # of one timing at least
LARGER = 16  # times the batch, on a GPU


def pruned(network: nn.Module, structure: Structure, sparsity: float, x: Tensor) -> Mask:
    """Return a network's mask at the nearest sparsity that it can have; shortcuts are pruned, too."""
    everything = full_mask(network, prune_shortcuts=True)
    shapes = {name: tuple(alive.shape) for name, alive in everything.items()}
    total = sum(alive.numel() for alive in everything.values())
    is_units = structure.pattern == "units"
    units = removable_units(network, derive_spec(network, x[:2]), x[:2], everything) if is_units else ()
    number = nearest_alive(structure, shapes, round((1 - sparsity) * total), units)
    return prune_structured(network.state_dict(), everything, structure, num_alive=number, units=units)


def masked(network: nn.Module, mask: Mask) -> nn.Module:
    """Return a copy with zeros where the mask prunes."""
    found = copy.deepcopy(network)
    found.load_state_dict(apply_mask(network.state_dict(), mask))
    return found


def semi_structured(network: nn.Module, mask: Mask) -> tuple[nn.Module, int]:
    """Return a copy of a half-precision network whose linear layers run 2:4 kernels, and how many layers that are."""
    from torch.sparse import to_sparse_semi_structured

    found, count = masked(network, mask), 0
    for path, module in found.named_modules():
        alive = mask.get(f"{path}.weight")
        if isinstance(module, nn.Linear) and alive is not None and TWO_OF_FOUR.fits(alive.shape):
            try:
                sparse = to_sparse_semi_structured(module.weight.detach())
            except (RuntimeError, ValueError):  # a shape that the kernels do not have: the classes of a head
                continue
            module.weight = nn.Parameter(sparse, requires_grad=False)
            count += 1
    return found, count


def forward(network: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        network(x)


def trainer(network: nn.Module, x: Tensor, y: Tensor, mask: Mapping[str, Tensor]) -> Callable[[], None]:
    """Return one training step, after which the mask, if there is any, is applied again."""
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    held = [(weight, mask[name]) for name, weight in network.named_parameters() if name in mask]

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for weight, alive in held:
                weight.mul_(alive)

    return step


def seconds(work: Callable[[], None], device: str) -> float:
    """Return the seconds of one call, over as many as take a while."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    calls = 1
    while True:
        start = clock()
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken = clock() - start
        if taken >= SECONDS:
            return taken / calls
        calls = max(2 * calls, int(1.2 * calls * SECONDS / max(taken, 1e-4)))


def medians(kinds: Mapping[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """Time all kinds in turn, so that what else the machine does falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):  # the first warms up
        for name, work in kinds.items():
            taken = seconds(work, device)
            if number:
                times[name].append(taken)
    return {name: statistics.median(found) for name, found in times.items()}


def difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Return the largest difference of two networks' outputs, relative to the largest output."""
    with torch.inference_mode():
        expected, found = one.eval()(x).double(), other.eval()(x).double()
    return float((found - expected).abs().max() / expected.abs().max())


def measure(name: str, device: str, rounds: int) -> list[dict[str, Any]]:
    """Return the figures of one network."""
    settings = NETWORKS[name]
    network = init_model(0, name, num_classes=10, in_shape=settings["in_shape"], **settings[device]).to(device).eval()
    draw = torch.Generator().manual_seed(0)
    batch = settings["batch"] * (LARGER if device == "cuda" else 1)
    x = torch.randn(batch, *settings["in_shape"], generator=draw).to(device)
    y = torch.randint(10, (batch,), generator=draw).to(device)
    kinds, masks, differences = {"dense": network}, {"dense": Mask()}, {}
    for sparsity in SPARSITIES:
        mask = pruned(network, Structure("units"), sparsity, x)
        label = f"units, {100 * mask_sparsity(mask):.0f} %"
        if f"{label}, compact" in kinds:
            continue  # the network can have no more
        whole, small = masked(network, mask), compact(network, mask, x)
        kinds |= {f"{label}, masked": whole, f"{label}, compact": small}
        masks |= {f"{label}, masked": mask, f"{label}, compact": Mask()}
        differences[f"{label}, compact"] = difference(whole, small, x)
    figures = figures_of(
        name, "forward", {kind: partial(forward, net.eval(), x) for kind, net in kinds.items()}, rounds, device
    )
    steps = {kind: trainer(copy.deepcopy(net), x, y, masks[kind]) for kind, net in kinds.items()}
    figures += figures_of(name, "training step", steps, rounds, device)
    if device == "cuda":
        figures += half_precision(name, network, x, rounds, differences)
    for figure in figures:
        figure["difference"] = differences.get(figure["kind"])
    return figures


def half_precision(
    name: str, network: nn.Module, x: Tensor, rounds: int, differences: dict[str, float]
) -> list[dict[str, Any]]:
    """Return the figures of 2:4 against dense, both in half precision."""
    mask = pruned(network, TWO_OF_FOUR, 0.5, x)
    half, inputs = copy.deepcopy(network).half().eval(), x.half()
    sparse, layers = semi_structured(half, mask)
    if not layers:
        print(f"{name}: no linear layer of a shape that 2:4 kernels have: not measured")
        return []
    label = f"2:4, {layers} linear layers"
    differences[label] = difference(masked(half, mask), sparse, inputs)
    kinds = {"dense, half": partial(forward, half, inputs), label: partial(forward, sparse, inputs)}
    return figures_of(name, "forward", kinds, rounds, "cuda")


def figures_of(
    network: str, what: str, kinds: Mapping[str, Callable[[], None]], rounds: int, device: str
) -> list[dict[str, Any]]:
    """Time kinds of a network and print a line for each; the first is what the others are compared with."""
    times = medians(kinds, rounds, device)
    dense = next(iter(times.values()))
    figures = []
    for kind, taken in times.items():
        ratio = dense / taken
        word = "" if kind == next(iter(times)) else f"{ratio:5.2f} x dense" + (", slower" if ratio < 1 else "")
        print(f"{network:10} {what:14} {kind:24} {1000 * taken:9.3f} ms  {word}", flush=True)
        figures.append({"network": network, "what": what, "kind": kind, "milliseconds": 1000 * taken, "ratio": ratio})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the CPU, and a GPU if any")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    has_gpu = torch.cuda.is_available()
    devices = [options.device] if options.device != "auto" else ["cpu", "cuda"] if has_gpu else ["cpu"]
    report: dict[str, Any] = {
        "hardware": describe(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "clock_on_cpu": "processor time" if options.threads == 1 else "wall time",
    }
    if not has_gpu:
        print("no GPU here: 2:4 kernels are not measured, and compact networks on the CPU alone")
    for device in devices:
        report[device] = [figure for name in options.networks.split(",") for figure in measure(name, device, options.rounds)]
    tell(report, options.json)


if __name__ == "__main__":
    main()
