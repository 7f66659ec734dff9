"""The quickstart's wall time, and MNIST-1D arms per second: raylth's packs against one arm at a time on each core.

The plain side of the arms is the usual procedure: a DataLoader over tensors, torch.optim.SGD, the mask multiplied in after
each step, float32, one arm after another in one process per core. A third side is raylth's own loop with one arm at a time.
All sides train the same MLP with batch 128 on the 4,000 signals, one process per core at the same time, in turn, several
times, all in float32; ratios are those of the medians. The sweep is the quickstart without analyses, as a command with a
fresh store: as it is (arms in bf16 where the processor multiplies in it), with its arms in float32, and without packs.

    python benchmarks/quickstart_time.py [--rounds 5] [--sweeps 1] [--way 'as it is'] [--epochs 10] [--json FILE]
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from hardware import describe, matmul_ceiling, tell
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from raylth.core.data import mnist1d
from raylth.core.masks import full_mask
from raylth.core.models import init_model
from raylth.core.precision import fastest_precision
from raylth.core.pruning import prune_global_magnitude
from raylth.core.training.loop import Recipe, train_together
from raylth.core.training.pack_tuning import fastest_pack
from raylth.core.training.packing import Program
from raylth.stages import make_context
from raylth.store import Store

ROOT = Path(__file__).parent.parent
BATCH_SIZE, SPARSITY, LR = 128, 0.9, 0.02
FLOP_PER_SAMPLE = 2 * (3 * (40 * 128 + 2 * 128 * 128 + 128 * 10) - 40 * 128)  # forward, both gradients; none to the input


def new_arm(seed: int) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a network and a mask for it."""
    network = init_model(seed, "mlp", num_classes=10, in_shape=(40,))
    return network, prune_global_magnitude(network.state_dict(), full_mask(network), fraction=SPARSITY)


def plain_side(epochs: int) -> tuple[int, Callable[[], None]]:
    """Train one arm in the plain way."""
    data = mnist1d()
    loader = DataLoader(
        TensorDataset(torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)), BATCH_SIZE, shuffle=True
    )

    def run() -> None:
        network, mask = new_arm(0)
        parameters = dict(network.named_parameters())
        factors = {name: alive.float() for name, alive in mask.items()}
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(network(x), y)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for name, factor in factors.items():
                        parameters[name].mul_(factor)
                loss.item()

    return 1, run


def raylth_side(epochs: int, *, packed: bool) -> tuple[int, Callable[[], None]]:
    """Train arms as a worker of a sweep does; together as many as are measured to be fastest, or one."""
    context = make_context(Store("unused"), mnist1d(), data_sha256="unused")
    recipe = Recipe(epochs, lr=LR, batch_size=BATCH_SIZE)
    size = fastest_pack(lambda: new_arm(0)[0], context.train, recipe).size if packed else 1

    def run() -> None:
        arms = [new_arm(seed) for seed in range(size)]
        program = Program([network for network, _ in arms])
        train_together(program, context.train, recipe, seeds=list(range(size)), masks=[mask for _, mask in arms])

    return size, run


SIDES: dict[str, Callable[[int], tuple[int, Callable[[], None]]]] = {
    "plain": plain_side,
    "raylth, one at a time": lambda epochs: raylth_side(epochs, packed=False),
    "raylth, packs": lambda epochs: raylth_side(epochs, packed=True),
}


def serve(side: str, epochs: int, pipe: Connection) -> None:
    """Run one side on one core: its arms once for each message that comes, until None."""
    torch.set_num_threads(1)
    size, run = SIDES[side](epochs)
    while pipe.recv() is not None:
        start = time.perf_counter()
        run()
        pipe.send((size, time.perf_counter() - start))


def measure_arms(rounds: int, epochs: int) -> dict[str, dict[str, float]]:
    """Return for every side its arms per second on all cores, the median over rounds, and what follows from it."""
    context, cores = multiprocessing.get_context("spawn"), os.cpu_count() or 1
    pipes: dict[str, list[Connection]] = {side: [] for side in SIDES}
    for side in SIDES:
        for _ in range(cores):
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(side, epochs, theirs), daemon=True).start()
            pipes[side].append(ours)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    sizes = dict.fromkeys(SIDES, 1)
    for number in range(rounds + 1):  # the first round warms all sides up
        for side, ends in pipes.items():
            for pipe in ends:
                pipe.send(True)
            answers = [pipe.recv() for pipe in ends]
            sizes[side] = max(size for size, _ in answers)
            if number:
                rates[side].append(sum(size / seconds for size, seconds in answers))
    for ends in pipes.values():
        for pipe in ends:
            pipe.send(None)
    samples = epochs * 4000
    return {
        side: {
            "arms_per_second": round(statistics.median(values), 3),
            "samples_per_second": round(statistics.median(values) * samples),
            "gflops": round(statistics.median(values) * samples * FLOP_PER_SAMPLE / 1e9, 1),
            "largest_pack": sizes[side],
        }
        for side, values in rates.items()
    }


WAYS = {"as it is": [], "arms in float32": ["sparse.precision=float32"], "one at a time": ["resources.pack=off"]}


def time_sweep(*settings: str) -> float:
    """Return the seconds that the quickstart sweep takes as a command, without analyses, with a fresh store."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "raylth.sweep", str(ROOT / "sweeps/quickstart.yaml")]
        start = time.perf_counter()
        subprocess.run(
            [*command, "analyses={}", "connect=null", f"storage={folder}", *settings], check=True, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweeps", type=int, default=1, help="how often the whole sweep is run, in each of three ways")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of an arm")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--way", action="append", choices=WAYS, help="of these ways alone")
    options = parser.parse_args()
    arms = measure_arms(options.rounds, options.epochs)
    sweeps: dict[str, list[float]] = {way: [] for way in options.way or WAYS}
    for _ in range(options.sweeps):
        for way, taken in sweeps.items():
            taken.append(round(time_sweep(*WAYS[way]), 1))
    packs = arms["raylth, packs"]["arms_per_second"]
    ceiling = matmul_ceiling("cpu", torch.float32, processes=os.cpu_count() or 1)
    report = {
        "benchmark": "MNIST-1D arms per second, and the quickstart sweep's wall time",
        "arms": arms,
        "packs_over_plain": round(packs / arms["plain"]["arms_per_second"], 2),
        "packs_over_one_at_a_time": round(packs / arms["raylth, one at a time"]["arms_per_second"], 2),
        "matmul_ceiling_gflops": round(ceiling / 1e9, 1),
        "packs_share_of_ceiling": round(1e9 * arms["raylth, packs"]["gflops"] / ceiling, 2),
        "sweep_seconds": {way: taken for way, taken in sweeps.items() if taken},
        "sweep_precision_of_arms": fastest_precision(),
        "hardware": describe(),
    }
    tell(report, options.json)


if __name__ == "__main__":
    main()
