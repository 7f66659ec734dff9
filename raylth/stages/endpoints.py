"""What lines and planes have in common: the networks that they go through, and how one of their points is measured."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylth.config.analyses import PI
from raylth.core.data import Split
from raylth.core.layerwise import reset_and_predict
from raylth.core.permutation import Permutation, PermutationSpec
from raylth.core.repair import repair, site_statistics
from raylth.core.temperature import cross_fitted
from raylth.core.training.loop import evaluate, evaluate_and_predict, score
from raylth.core.training.schedule import even_batch_size
from raylth.stages.arrays import state_arrays
from raylth.stages.context import Context
from raylth.stages.settings import AnalysisSettings, EndsSettings
from raylth.stages.stage import Stage
from raylth.stages.symmetry import symmetry_of
from raylth.stages.training import load_network
from raylth.store import BrokenArtefact

__all__ = [
    "Evaluator",
    "Measured",
    "Values",
    "load_ends",
    "load_members",
    "load_permutation",
    "load_universe",
    "universe_arrays",
]

IMAGES = 125  # of one forward pass: their activations stay in a CPU's cache; no result depends on it
SIGNALS = 1000  # of one forward pass, where samples are vectors
REPAIR_BATCH = 500  # samples whose statistics correct the layers before the one that is measured


class Values(NamedTuple):
    """What is measured of a network on one split."""

    loss: float  # nats
    error: float  # percent
    temperature: float | None = None  # where it is asked for: geometric mean of the two halves' (`cross_fitted`)
    scaled_loss: float | None = None  # nats, at the temperature


Measured = dict[str, Values]  # by split, "train" and "test"


def load_permutation(stage: Stage, context: Context, network: nn.Module) -> Permutation:
    """Return the permutation among a stage's parents.

    Raises BrokenArtefact for one of other groups of units: an earlier version knew less of the network's symmetry.
    """
    spec = symmetry_of(stage.settings.model, network, context)
    key = stage.parents["permutation"]
    perms = context.load(key, "permutation")
    try:
        return Permutation(spec, {group: torch.tensor(perm) for group, perm in perms.items()})
    except ValueError as error:
        raise BrokenArtefact(key, f"the permutation is not of the network's symmetry as it is known now ({error})") from error


def universe_arrays(permutations: Sequence[Permutation]) -> dict[str, np.ndarray]:
    """Return the permutations of several networks as named arrays; `load_universe` reads them."""
    moves = {f"{number}/{group}": perm for number, each in enumerate(permutations) for group, perm in each.perms.items()}
    return state_arrays(moves)


def load_universe(key: str, spec: PermutationSpec, context: Context) -> list[Permutation]:
    """Return the permutations of a stage `universe`, one for each of its networks; BrokenArtefact as `load_permutation`."""
    perms: dict[int, dict[str, torch.Tensor]] = {}
    for name, perm in context.load(key, "permutations").items():
        number, _, group = name.partition("/")
        perms.setdefault(int(number), {})[group] = torch.tensor(perm)
    try:
        return [Permutation(spec, perms[number]) for number in sorted(perms)]
    except ValueError as error:
        raise BrokenArtefact(key, f"the permutation is not of the network's symmetry as it is known now ({error})") from error


def load_ends(stage: Stage[EndsSettings], context: Context) -> list[nn.Module]:
    """Load the networks `a`, `b`, ... of a stage, moved by pi or pi^-1 as its settings say; unsaid, pi moves `a`."""
    moves = stage.settings.moves
    if moves is None:
        moves = {"a": PI} if "permutation" in stage.parents else {}
    networks = []
    for role in sorted(stage.parents.keys() - {"permutation"}):
        network = load_network(stage.settings.model, context, stage.parents[role])
        if (move := moves.get(role)) is not None:
            permutation = load_permutation(stage, context, network)
            permutation = permutation if move == PI else permutation.inverse()
            network.load_state_dict(permutation.apply(network.state_dict()))
        networks.append(_channels_last(network) if context.train.is_images else network)
    return networks


def load_members(
    stage: Stage[AnalysisSettings], context: Context, names: Sequence[str]
) -> tuple[dict[str, list[nn.Module]], dict[str, list[Permutation]]]:
    """Load the named networks of all replicates, and the permutations of each to the universe among the parents."""
    places, model = stage.settings.places, stage.settings.model
    assert places is not None
    count = len(places) // len(names)
    networks = {
        name: [load_network(model, context, stage.parents[f"{name} {number}"]) for number in range(count)] for name in names
    }
    spec = symmetry_of(model, networks[names[0]][0], context)
    found = load_universe(stage.parents["universe"], spec, context)
    return networks, {name: [found[places[f"{name} {number}"]] for number in range(count)] for name in names}


class Evaluator:
    """Measures networks on training samples, classes in proportion, and on the test split, as they are or corrected.

    With `temperature` also at the temperature of the smallest loss, from the same forward pass.
    """

    def __init__(self, context: Context, samples: int, *, temperature: bool = False) -> None:
        self.train, self.test, self.temperature = context.train.take(samples), context.test, temperature
        self.chunk = IMAGES if self.train.is_images else SIGNALS

    def inputs(self, size: int) -> list[Tensor]:
        """Return the training samples as batches of at most `size`, without augmentation, none of them much smaller."""
        batches = [x for x, _ in self.train.batches(even_batch_size(len(self.train), size))]
        return [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in batches]

    def plain(self, network: nn.Module) -> Measured:
        """Measure a network as it is."""
        return {"train": self._on(network, self.train), "test": self._on(network, self.test)}

    def _on(self, network: nn.Module, split: Split) -> Values:
        if not self.temperature:
            found = evaluate(network, split, self.chunk)
            return Values(found.loss, 100.0 - found.accuracy)
        found, logits = evaluate_and_predict(network, split, self.chunk)
        return Values(found.loss, 100.0 - found.accuracy, *cross_fitted(logits, split.y))

    def reset(self) -> Callable[[nn.Module, float], Measured]:
        """Return what measures a network's batch-norm statistics anew, on the training samples, and then the network."""
        inputs = self.inputs(self.chunk)

        def measure(network: nn.Module, alpha: float) -> Measured:
            if not any(isinstance(module, _BatchNorm) for module in network.modules()):
                return self.plain(network)
            logits = reset_and_predict(network, inputs)
            loss, accuracy = score(logits, self.train.y)
            scaled = cross_fitted(logits, self.train.y) if self.temperature else ()
            return {"train": Values(loss, 100.0 - accuracy, *scaled), "test": self._on(network, self.test)}

        return measure

    def repair(self, a: nn.Module, b: nn.Module) -> Callable[[nn.Module, float], Measured]:
        """Return what REPAIRs a network at alpha between `a` and `b`, and then measures it."""
        inputs = self.inputs(REPAIR_BATCH)
        ends = [site_statistics(network, inputs) for network in (a, b)]

        def measure(network: nn.Module, alpha: float) -> Measured:
            repair(network, ends[0], ends[1], alpha, inputs)
            return self.plain(network)

        return measure


def _channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)
