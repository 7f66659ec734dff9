"""Matching many networks at once: raylth beside the authors' code of C2M3, on the same trained networks, both in one run.

The objective is the sum over pairs of the inner products of the moved weights (parameters that units index, each tensor
once); beside it the mean pairwise cosine, seconds (wall, and of the processor, which other load on the machine changes
less), and the test accuracy of the mean of the weights, as it is and with REPAIR. The authors' code is not part of this
repository: clone https://github.com/crisostomi/cycle-consistent-model-merging and name its folder. Its modules need neither
Lightning nor a GPU for what is called here; where they import what is not installed they get an empty placeholder.

    python benchmarks/merging.py [--authors FOLDER] [--networks mlp resnet20] [--count 5] [--json FILE] [--quick]
"""

import argparse
import enum
import importlib
import sys
import time
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from hardware import describe, tell
from torch import Tensor, nn

from raylth.core.data import load_dataset
from raylth.core.matching import match_cycle_consistent, match_weights
from raylth.core.matching.cycle_consistent import ascend, mean_cosine, pairwise_product
from raylth.core.matching.units import compared
from raylth.core.models import init_model
from raylth.core.permutation import Permutation, PermutationSpec, derive_spec, identity_permutation
from raylth.core.training.loop import Recipe, evaluate, train
from raylth.stages import make_context
from raylth.stages.merging import merged_network
from raylth.store import Store

TRAINED = {"mlp": ("mnist1d", Recipe(40, lr=0.08)), "resnet20": ("digits", Recipe(8, lr=0.05))}
PLACEHOLDERS = (
    "backports", "ccmm.pl_modules", "ccmm.utils", "graphviz", "hydra", "matplotlib", "nn_core", "omegaconf",
    "pytorch_lightning", "torchviz", "wandb",
)  # fmt: skip
STARTS = ("identity", "sinkhorn")  # that the authors configure
STEPS = 200  # of Frank-Wolfe in the authors' configuration
Found = Sequence[Permutation]


class Placeholder(types.ModuleType):
    """A module whose every attribute is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return enum.StrEnum if name == "StrEnum" else type(name, (), {})


class Placeholders:
    """Finds a placeholder for what the authors' modules import and do not call here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        is_one = any(name == each or name.startswith(f"{each}.") for each in PLACEHOLDERS)
        return ModuleSpec(name, self, is_package=True) if is_one else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Placeholder:
        made = Placeholder(spec.name)
        made.__path__ = []
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "ccmm.utils.utils":
            module.to_np = lambda tensor: tensor.detach().cpu().numpy()  # type: ignore[attr-defined]


def load_authors(folder: Path) -> tuple[Any, Any]:
    """Return the authors' modules of the matching of many networks, and of permutation specs."""
    sys.meta_path.insert(0, Placeholders())
    for name in ("ccmm", "ccmm.matching"):  # whose own __init__ sets up logging
        module = types.ModuleType(name)
        module.__path__ = [str(folder / "src" / name.replace(".", "/"))]
        sys.modules[name] = module
    matching, specs, one_pair = (
        importlib.import_module(f"ccmm.matching.{module}")
        for module in ("frank_wolfe_sync_matching", "permutation_spec", "frank_wolfe_matching")
    )
    if not torch.cuda.is_available():  # which they use in three places, whatever the device
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
        for function in (one_pair.sinkhorn_knopp, one_pair.initialize_perturbed_uniform):
            function.__defaults__ = (*function.__defaults__[:-1], "cpu")
    return matching, specs


def by_authors(modules: tuple[Any, Any], states: Sequence[dict[str, Tensor]], spec: PermutationSpec, start: str) -> Found:
    """Match by the authors' code, of which only the network's spec is translated."""
    matching, specs = modules
    axes = {
        name: tuple(None if axis is None else next(filter(None, axis.parts[0].groups)) for axis in spec.axes[name])
        for name in compared(spec)
    }
    theirs = specs.PermutationSpecBuilder().permutation_spec_from_axes_to_perm(axes)
    symbols = [chr(ord("a") + number) for number in range(len(states))]
    params = {symbol: {name: state[name] for name in axes} for symbol, state in zip(symbols, states, strict=True)}
    pairs = [(one, other) for one in symbols for other in symbols if one < other]
    torch.manual_seed(0)
    perms, _ = matching.frank_wolfe_synchronized_matching(params, theirs, symbols, pairs, STEPS, start, device="cpu")
    return [
        Permutation(spec, {name: torch.as_tensor(perms[symbol][name]).long().argsort() for name in spec.groups})
        for symbol in symbols
    ]


def to_first(states: Sequence[dict[str, Tensor]], spec: PermutationSpec) -> list[Permutation]:
    """Match each network to the first by itself."""
    return [identity_permutation(spec), *(match_weights(each, states[0], spec, 0).permutation for each in states[1:])]


def compare(name: str, count: int, authors: tuple[Any, Any] | None, recipe: Recipe) -> dict[str, Any]:
    """Train networks of one kind, match them in every way, and merge them."""
    dataset = TRAINED[name][0]
    context = make_context(Store("unused"), load_dataset(dataset), data_sha256="unused")
    settings: dict[str, Any] = {"width": 1.0, "num_classes": 10, "in_shape": context.train.in_shape}
    networks = [init_model(seed, name, **settings) for seed in range(count)]
    for seed, network in enumerate(networks):
        train(network, context.train, recipe, seed=seed)
    spec = derive_spec(networks[0], context.train.probe(2))
    states = [network.state_dict() for network in networks]
    sides: dict[str, Callable[[], Found]] = {
        "not matched": lambda: [identity_permutation(spec)] * count,
        "each to the first (weight)": lambda: to_first(states, spec),
        "each to the sum of the others (MergeMany)": lambda: ascend(states, to_first(states, spec), 0)[0],
        "raylth": lambda: match_cycle_consistent(states, spec, 0).permutations,
    }
    if authors:
        sides |= {f"authors, {start}": lambda start=start: by_authors(authors, states, spec, start) for start in STARTS}  # type: ignore[misc]
    found: dict[str, Any] = {"network": name, "data": dataset, "count": count}
    found["test accuracy, mean"] = round(sum(evaluate(each, context.test, 500).accuracy for each in networks) / count, 2)
    for side, run in sides.items():
        found[side] = measure(run, networks[0], states, spec, context)
        print(name, side, found[side], file=sys.stderr, flush=True)
    return found


def measure(
    run: Callable[[], Found], like: nn.Module, states: Sequence[dict[str, Tensor]], spec: PermutationSpec, context: Any
) -> dict[str, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    permutations = run()
    seconds, cpu = time.perf_counter() - wall, time.process_time() - processor
    moved = [each.apply(state) for each, state in zip(permutations, states, strict=True)]
    accuracy = {
        correction: round(evaluate(merged_network(like, moved, correction, context.train), context.test, 500).accuracy, 2)
        for correction in ("plain", "reset", "repair")
    }
    return {
        "objective": round(pairwise_product(moved, spec), 2),
        "mean cosine": round(mean_cosine(moved, spec), 5),
        "seconds": round(seconds, 2),
        "seconds of the processor": round(cpu, 2),
        "test accuracy of the merged": accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, help="folder of the authors' repository")
    parser.add_argument("--networks", nargs="+", choices=list(TRAINED), default=list(TRAINED))
    parser.add_argument("--count", type=int, default=5, help="networks that are matched at once")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="hardly trained networks: shows that it runs, measures little")
    options = parser.parse_args()
    torch.set_num_threads(1)
    authors = load_authors(options.authors) if options.authors else None
    report: dict[str, Any] = {"benchmark": "matching many networks at once"}
    for name in options.networks:
        recipe = Recipe(1, lr=0.05) if options.quick else TRAINED[name][1]
        report[name] = compare(name, options.count, authors, recipe)
    tell({**report, **describe()}, options.json)


if __name__ == "__main__":
    main()
