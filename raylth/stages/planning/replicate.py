"""The stages of one replicate at one width: networks A and B, A's masks, the permutations, the arms."""

import operator
from bisect import bisect_right
from dataclasses import replace
from functools import partial
from typing import Any

from raylth.arms import ARMS, Arm
from raylth.config.analyses import ConnectConfig
from raylth.config.sweep import SweepConfig
from raylth.core.matching.matcher import MATCHERS
from raylth.core.pruning import num_landing_alive, trunk_counts
from raylth.core.pruning.finder import FINDERS, ITERATIVE, MaskFinder, is_dynamic
from raylth.stages.planning.shapes import landing, nearest, num_prunable
from raylth.stages.planning.stage_maker import StageMaker
from raylth.stages.planning.universes import Universes, through_universe
from raylth.stages.settings import Amount, MaskSettings, MatchSettings
from raylth.stages.stage import Stage

__all__ = ["Replicate"]


class Replicate(StageMaker):
    """Plans one pair of networks. After `stages`, its dictionaries say where networks and masks are; `find` reads them."""

    def __init__(self, config: SweepConfig, width: float, replicate: int, universes: Universes | None = None) -> None:
        super().__init__(config, width, replicate)
        self.finders: list[str | None] = [None] if config.sparse.mask_from else [*config.mask.finders]  # None: files
        self.universes = universes or Universes(config, width)  # of this width, shared by its replicates
        self.theta: dict[tuple[str, int], str] = {}  # (network, epoch) -> key
        self.masks: dict[float, str] = {}  # sparsity -> key of A's mask by the first finder, perhaps with A pruned
        self.rounds: list[Stage] = []  # of A's pruning
        self.has_network = False  # whether the first finder's masks come with the trained A
        self.is_matched = any(ARMS[name].needs_match for name in config.sparse.arms)
        self.arms: dict[tuple[str, float, int], str] = {}  # (arm, sparsity, rewind) -> key; of several matches the best's
        self._early: dict[tuple[str, int], str] = {}  # (mask, epoch) -> A's weights, where A was trained to find the mask

    def stages(self) -> list[Stage]:
        """Return all stages of the pair, parents before children; ValueError as `make_plan` says."""
        total, from_files = self.config.dense.epochs, self.mask_files
        files_have_network = any(stage.settings.has_network for stage in from_files.values())
        self._check_signs(list(from_files.values()))
        dense = self._trained(files_have_network=files_have_network)
        for name, stage in dense.items():
            self.theta |= {(name, int(epoch)): key for epoch, key in stage.checkpoints.items()} | {(name, total): stage.key}
        planned: list[Stage] = [*dense.values()]
        for finder in self.finders:
            made: list[Stage]
            if finder is None:
                made, masks = [*from_files.values()], {sparsity: stage.key for sparsity, stage in from_files.items()}
            else:
                made, masks = self._masks(finder, "A")
            has_network = is_dynamic(finder) or files_have_network
            if finder == self.finders[0]:
                self.masks, self.has_network = masks, has_network
            self.rounds += [stage for stage in made if stage.kind == ITERATIVE]
            planned += made
            for sparsity, mask in masks.items():
                planned += self._cells(finder, sparsity, mask, has_network=has_network)
        return planned

    def _cells(self, finder: str | None, sparsity: float, mask: str, *, has_network: bool) -> list[Stage]:
        """Plan the permutations and arms of one mask; with a network of its own, that is matched and not the dense A."""
        sparse = self.config.sparse
        a = mask if has_network else self.theta.get(("A", self.config.dense.epochs))
        labels = {"sparsity": sparsity, "mask_finder": finder} if has_network else {}
        matches = self._matches(a, labels) if self.is_matched and a is not None else []
        planned = [*matches]
        if self.config.connect:
            planned += [self.line_to_b(self.config.connect, match) for match in matches]
        for rewind in sparse.rewinds:
            for name in sparse.arms:
                planned += self._arm(name, finder, sparsity, mask, rewind, matches)
        return planned

    def _trained(self, *, files_have_network: bool) -> dict[str, Stage]:
        """Plan the dense trainings that anything needs, with the epochs at which their weights are kept."""
        config, finders = self.config, self.finders
        sources = {ARMS[name].weights_from for name in config.sparse.arms}
        if files_have_network and "A" in sources:
            found = [name for name in config.sparse.arms if ARMS[name].weights_from == "A"]
            does = "starts" if len(found) == 1 else "start"
            raise ValueError(
                f"sparse.arms: {' and '.join(found)} {does} from A's early weights, and sparse.mask_from provides the "
                f"trained network only: remove {' and '.join(found)}"
            )
        has_dense = [finder for finder in finders if not is_dynamic(finder)]
        rewound = sources if has_dense else sources - {"A"}
        epochs = {name: list(config.sparse.rewinds) if name in rewound else [] for name in ("A", "B")}
        if self.is_matched:
            epochs["B"] += config.match_epochs
        if epochs["B"] and config.analyses.match_quality:
            epochs["B"] += config.analyses.match_quality.epochs
        if any(_reads_initial(finder) for finder in finders):
            epochs["A"].append(0)
        if config.analyses.overlap and config.analyses.overlap.own and _reads_initial(finders[0]):
            epochs["B"].append(0)
        # masks are found from A, and matching compares with it
        needs_a = any(finder is not None for finder in has_dense) or (
            self.is_matched and bool(has_dense) and not files_have_network
        )
        return {name: self.dense(name, asked) for name, asked in epochs.items() if asked or (name == "A" and needs_a)}

    def _matches(self, a: str, labels: dict[str, Any]) -> list[Stage]:
        """Plan the permutations from A's network to B under which A's mask is given to B."""
        found = [
            self.match(method, a, self.theta["B", epoch], epoch)
            for method in self.config.match.method
            for epoch in self.config.match_epochs
        ]
        return [replace(match, labels={**match.labels, "carries_masks": True, **labels}) for match in found]

    def match(
        self, method: str, dense_a: str, dense_b: str, epoch: int, *, samples: int | None = None
    ) -> Stage[MatchSettings]:
        """Plan the permutation from A to B; by a matcher of many networks it follows from those of all networks."""
        match = super().match(method, dense_a, dense_b, epoch, samples=samples)
        if MATCHERS[method].match_many is None:
            return match
        return through_universe(match, self.universes.of(method, dense_a, epoch, samples))

    def _arm(
        self, name: str, finder: str | None, sparsity: float, mask: str, rewind: int, matches: list[Stage]
    ) -> list[Stage]:
        """Plan an arm in one cell: one network, or one for each match."""
        arm, labels = ARMS[name], {"mask_finder": finder}
        weights = self.early_a(mask, rewind) if arm.weights_from == "A" else self.theta["B", rewind]
        parents = {"weights": weights, "mask": mask}
        if arm.signs == "A":
            parents["signs"] = self._signs_of(arm, finder, mask)
        planned: list[Stage] = []
        for match in matches if arm.needs_match else [None]:
            moved = {**parents, "permutation": match.key} if match else parents
            planned.append(self.sparse(name, moved, sparsity, rewind, match, labels=labels))
            if finder == self.finders[0] and (match is None or self._is_best(match)):
                self.arms[name, sparsity, rewind] = planned[-1].key
        return planned

    def early_a(self, mask: str, rewind: int) -> str:
        """Return the key of A's weights at a rewind point: of the A that was trained to find this mask, or of the dense A."""
        found = self._early.get((mask, rewind))
        return found if found is not None else self.theta["A", rewind]

    def _signs_of(self, arm: Arm, finder: str | None, mask: str) -> str:
        """Return the key of the network whose signs an arm takes: the one that A's mask was found with.

        IMP's network is 0 where it is pruned, and a shuffled mask is alive there: such an arm takes the trained dense A's.
        """
        if finder is None or is_dynamic(finder):
            return mask
        if finder == ITERATIVE:
            return self.theta["A", self.config.dense.epochs] if arm.transform == "shuffle" else mask
        return self._start_of(finder, "A")

    def _check_signs(self, from_files: list[Stage[MaskSettings]]) -> None:
        """Raise ValueError where an arm takes signs from a file of masks that has no network."""
        without = [stage.files["mask"] for stage in from_files if not stage.settings.has_network]
        signed = [name for name in self.config.sparse.arms if ARMS[name].signs == "A"]
        if without and signed:
            takes = "takes" if len(signed) == 1 else "take"
            raise ValueError(
                f"sparse.arms: {' and '.join(signed)} {takes} the signs of A's trained network, and {without[0]} "
                "(sparse.mask_from) has a mask only: give the state dict of a network that torch.nn.utils.prune pruned, or "
                f"remove {' and '.join(signed)}"
            )

    def _is_best(self, match: Stage) -> bool:
        """Whether a match is by the first method, to the trained B: what analyses mean by pi."""
        labels = match.labels
        return labels["match_method"] == self.config.match.method[0] and labels["match_epoch"] == self.config.dense.epochs

    def find(self, base: str, sparsity: float | None, rewind: int | None) -> str:
        """Return the key of a network by its name in `analyses`; KeyError, with a sentence, when the sweep makes none."""
        if base == "imp" and sparsity in self.masks and self.rounds:
            return self.masks[sparsity]
        if base in ("A", "B") and (base, self.config.dense.epochs) in self.theta:
            return self.theta[base, self.config.dense.epochs]
        if base == "A" and self.has_network and sparsity in self.masks:
            return self.masks[sparsity]
        if sparsity is not None and rewind is not None and (base, sparsity, rewind) in self.arms:
            return self.arms[base, sparsity, rewind]
        raise KeyError(f"this sweep trains no network {base!r}: no arm starts from it, or its masks come from elsewhere")

    def trained(self, network: str, sparsity: float) -> str:
        """Return the key of the A or B that is matched; A may come with the first finder's masks. KeyError as `find`."""
        return self.masks[sparsity] if network == "A" and self.has_network else self.find(network, None, None)

    def best_match(self, sparsity: float) -> Stage:
        """Plan the match that analyses mean by pi; KeyError as `find`."""
        a, b = (self.trained(name, sparsity) for name in "AB")
        return self.match(self.config.match.method[0], a, b, self.config.dense.epochs)

    def masks_of(self, network: str) -> tuple[list[Stage], dict[float, str]]:
        """Plan the search for a network's masks by the first finder: as `_masks`."""
        assert self.finders[0] is not None
        return self._masks(self.finders[0], network)

    def _masks(self, finder: str, network: str) -> tuple[list[Stage], dict[float, str]]:
        """Plan the search for a network's masks: its stages, and by sparsity the key of the mask. KeyError as `find`."""
        sparsities = self.config.sparse.sparsities
        if finder == ITERATIVE:
            return self._imp(network, self.find(network, None, None))
        if is_dynamic(finder):
            is_read = network == "A" and any(ARMS[name].weights_from == "A" for name in self.config.sparse.arms)
            rewinds = self.config.sparse.rewinds if is_read else []
            trained = [self.dynamic(finder, network, sparsity, rewinds) for sparsity in sparsities]
            self._early |= {(stage.key, int(epoch)): key for stage in trained for epoch, key in stage.checkpoints.items()}
            return [*trained], {stage.settings.sparsity: stage.key for stage in trained}
        start = self._start_of(finder, network)
        found = [self.find_mask(finder, network, start, sparsity) for sparsity in sparsities]
        return [*found], {stage.settings.sparsity: stage.key for stage in found}

    def _start_of(self, finder: str, network: str) -> str:
        """Return the key of the weights that a finder reads which trains nothing."""
        return self.theta[network, 0] if _reads_initial(finder) else self.find(network, None, None)

    def _imp(self, network: str, dense: str) -> tuple[list[Stage], dict[float, str]]:
        """Return the shared trunk with all landing rounds, and for each sparsity the key of the network's mask."""
        imp = self.config.imp
        total = num_prunable(self.model, prune_shortcuts=self.config.imp.prune_shortcuts)
        structure = self.structure
        alive = {
            sparsity: landing(self.model, structure, sparsity) if structure else num_landing_alive(total, sparsity)
            for sparsity in self.config.sparse.sparsities
        }
        reachable = partial(nearest, self.model, structure) if structure else int
        try:
            counts = trunk_counts(total, imp.prune_fraction, min(alive.values()), reachable)
        except ValueError as error:
            raise ValueError(f"sparse.sparsities: {max(alive):g} cannot be reached: {error}") from error
        trunk: list[Stage] = []
        for number, kept in enumerate(counts[1:], start=1):
            parent = trunk[-1].key if trunk else dense
            trunk.append(self.round(network, number, parent, Amount(fraction=imp.prune_fraction), 1 - kept / total))
        keys = [dense, *(stage.key for stage in trunk)]
        landings: list[Stage] = []
        masks = {}
        for sparsity, target in alive.items():
            number = bisect_right(counts, -target, key=operator.neg) - 1  # the last round that keeps as many
            if counts[number] == target and number > 0:  # the trunk itself lands here
                masks[sparsity] = keys[number]
                continue
            landings.append(self.round(network, number + 1, keys[number], Amount(sparsity=sparsity), sparsity))
            masks[sparsity] = landings[-1].key
        return trunk + landings, masks

    def line_to_b(self, asked: ConnectConfig, match: Stage) -> Stage:
        """Plan the line from pi(A) to the trained B, for a pi that was found at any epoch of B."""
        parents = {"a": match.parents["a"], "b": self.find("B", None, None), "permutation": match.key}
        return self.line(asked, parents, match.labels, "pi(A) - B")


def _reads_initial(finder: str | None) -> bool:
    """Whether masks are found in the untrained network."""
    found = FINDERS[finder] if finder is not None else None
    return isinstance(found, MaskFinder) and found.network == "initial"
