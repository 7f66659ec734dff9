"""Whether an engine computes what the plain loop computes, tried on the device at hand before anything is trained with it."""

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from raylth.core.data.dataset import ArraySplit
from raylth.core.masks import full_mask
from raylth.core.memory import is_out_of_memory
from raylth.core.modes import draws_numbers
from raylth.core.training.engines.program import EngineName, make_program
from raylth.core.training.loop import Diverged, train_together
from raylth.core.training.packing import NotPackable, Program
from raylth.core.training.recipe import Recipe

__all__ = ["FALLBACK", "Proof", "prove", "usable"]

STEPS = 20  # at least, of which one in three ends an epoch with a smaller batch
MEMBERS = 2  # that are trained side by side
RATE = 1e-3  # small: at a usual rate rounding alone grows to a hundredth of the weights within six steps
FLOAT32_BOUND = 1e-3  # of the way that the weights went
HALF_BOUND = 1.5  # times the plain loop's own distance from float32, in bf16 and tf32

FALLBACK: dict[EngineName, EngineName] = {"stacked": "graph", "compiled": "graph", "graph": "eager"}


@dataclass(frozen=True)
class Proof:
    """How far an engine ended from the plain loop in float32, as a part of the way that it went, and how far it may."""

    engine: EngineName
    error: float
    bound: float
    is_exact: bool  # the plain loop's own bits

    @property
    def holds(self) -> bool:
        """Whether the engine may be used; NaN never may."""
        return self.error <= self.bound


def prove(engine: EngineName, networks: Sequence[nn.Module], recipe: Recipe, in_shape: tuple[int, ...]) -> Proof:
    """Train copies of up to two of the networks for 20 steps by an engine and by the plain loop, on fresh random data.

    The batches are of the recipe's size, but for the last of every three; half of each weight matrix is masked; momentum,
    weight decay, label smoothing and arithmetic are the recipe's. The error is the largest over parameters and over
    statistics, of all members, of |engine - exact| / |exact - start|, where exact is the plain loop in float32. The bound is
    1e-3 in float32; in bf16 and tf32 1.5 times the same error of the plain loop, plus 1e-3. Raises what the engine raises.
    """
    members = [copy.deepcopy(network) for network in networks[: 1 if draws_numbers(networks[0]) else MEMBERS]]
    trial = _Trial(members, recipe, in_shape)
    plain = trial.run("eager", recipe)
    found = trial.run(engine, recipe)
    pairs = list(zip(plain, found, strict=True))
    is_exact = all(torch.equal(tensor, other[name]) for one, other in pairs for name, tensor in one.items())
    if recipe.precision == "float32":
        return Proof(engine, trial.error(found, plain), FLOAT32_BOUND, is_exact)
    exact = trial.run("eager", replace(recipe, precision="float32"))
    bound = HALF_BOUND * trial.error(plain, exact) + FLOAT32_BOUND
    return Proof(engine, trial.error(found, exact), bound, is_exact)


class _Trial:
    """A short training that is repeated by several engines."""

    def __init__(self, networks: list[nn.Module], recipe: Recipe, in_shape: tuple[int, ...]) -> None:
        self.networks, self.count = networks, len(networks)
        self.device = next(networks[0].parameters()).device
        samples = 2 * recipe.batch_size + max(2, recipe.batch_size // 4 + 1)
        draw = torch.Generator().manual_seed(secrets.randbits(60))  # other data at each call
        x = torch.randn(samples, *in_shape, generator=draw)
        y = torch.randint(0, self._classes(x[:2]), (samples,), generator=draw)
        self.split = ArraySplit(x.to(self.device), y.to(self.device))
        self.masks = [
            {name: torch.rand(alive.shape, generator=draw) < 0.5 for name, alive in full_mask(network).items()}
            for network in networks
        ]
        with torch.no_grad():  # here: pruning moves a network farther than the training does
            for network, mask in zip(networks, self.masks, strict=True):
                for name, alive in mask.items():
                    network.get_parameter(name).mul_(alive.to(self.device))
        self.start = [_values(network.state_dict()) for network in networks]

    def run(self, engine: EngineName, recipe: Recipe) -> list[dict[str, Tensor]]:
        """Return every member's tensors after the training; by `eager` each is trained alone."""
        short = replace(
            recipe, epochs=-(-STEPS // 3), lr=RATE, warmup_epochs=0, decay_every=0, schedule_epochs=None, schedule_start=0,
            first_resolution=None, unsynced_workers=0,
        )  # fmt: skip
        networks = [copy.deepcopy(network) for network in self.networks]
        programs = [Program([network]) for network in networks] if engine == "eager" else [make_program(networks, engine)]
        first = 0
        for program in programs:
            own = slice(first, first + program.size)
            first = own.stop
            found = train_together(program, self.split, short, seeds=list(range(own.start, own.stop)), masks=self.masks[own])
            for losses in found:
                if isinstance(losses, Diverged):
                    raise losses
        return [_values(network.state_dict()) for network in networks]

    def error(self, found: Sequence[Mapping[str, Tensor]], exact: Sequence[Mapping[str, Tensor]]) -> float:
        """Return the largest distance from `exact`, of parameters and of statistics, relative to the way from the start."""
        trained = {name for name, _ in self.networks[0].named_parameters()}
        worst = 0.0
        for one, other, start in zip(found, exact, self.start, strict=True):
            for names in (trained, one.keys() - trained):
                chosen = sorted(name for name in names if name in one and one[name].is_floating_point())
                apart, way = (_distance(a, b, chosen) for a, b in ((one, other), (other, start)))
                error = apart / way if way > 0 else apart
                worst = error if not error <= worst else worst  # NaN stays
        return worst

    def _classes(self, x: Tensor) -> int:
        with torch.no_grad():
            return int(copy.deepcopy(self.networks[0]).eval()(x.to(self.device)).shape[1])


def _values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: Sequence[str]) -> float:
    return float(sum((one[name].double() - other[name].double()).square().sum() for name in names)) ** 0.5 if names else 0.0


PROVED: dict[Any, EngineName] = {}  # of this process: what may be used where an engine was asked for


def usable(
    engine: EngineName, networks: Sequence[nn.Module], recipe: Recipe, in_shape: tuple[int, ...]
) -> tuple[EngineName, list[str]]:
    """Return the engine that is asked for if it is proved here, else the one that it falls back to, and a line for each that
    was passed over. Each is tried once in a process for networks of a kind. Raises what is an error of memory.
    """
    network, device = networks[0], next(networks[0].parameters()).device
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in network.state_dict().items())
    how = (recipe.precision, recipe.batch_size, recipe.label_smoothing, recipe.momentum > 0, recipe.optimizer)
    key = (engine, type(network), repr(network), shapes, in_shape, how, recipe.neuron_scaling, device)
    notes: list[str] = []
    if key not in PROVED:
        PROVED[key] = _tried(engine, networks, recipe, in_shape, notes)
    return PROVED[key], notes


def _tried(
    engine: EngineName, networks: Sequence[nn.Module], recipe: Recipe, in_shape: tuple[int, ...], notes: list[str]
) -> EngineName:
    while engine != "eager":
        try:
            proof = prove(engine, networks, recipe, in_shape)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error) if isinstance(error, NotPackable) else f"{type(error).__name__}: {error}"
            notes.append(f"engine {engine!r} cannot be used: {reason.strip().splitlines()[0][:200]}")
        else:
            if proof.holds:
                return engine
            notes.append(
                f"engine {engine!r} is not used: after {STEPS} steps it is {proof.error:.2g} of the way off the plain loop, "
                f"and {proof.bound:.2g} is allowed"
            )
        engine = FALLBACK[engine]
    return engine
