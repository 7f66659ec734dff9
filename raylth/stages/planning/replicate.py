"""The stages of one replicate at one width: networks A and B, A's masks, the permutations, the arms."""

import operator
from bisect import bisect_right
from dataclasses import replace
from functools import partial

from raylth.arms import ARMS
from raylth.config.analyses import ConnectConfig
from raylth.config.sweep import SweepConfig
from raylth.core.pruning import num_landing_alive, trunk_counts
from raylth.core.pruning.finder import ITERATIVE
from raylth.stages.planning.shapes import landing, nearest, num_prunable
from raylth.stages.planning.stage_maker import StageMaker
from raylth.stages.settings import Amount
from raylth.stages.stage import Stage

__all__ = ["Replicate"]


class Replicate(StageMaker):
    """Plans one pair of networks. After `stages`, its dictionaries say where networks and masks are; `find` reads them."""

    def __init__(self, config: SweepConfig, width: float, replicate: int) -> None:
        super().__init__(config, width, replicate)
        self.theta: dict[tuple[str, int], str] = {}  # (network, epoch) -> key
        self.masks: dict[float, str] = {}  # sparsity -> key of A's mask, with A pruned where IMP made it
        self.rounds: list[Stage] = []  # of A's pruning
        self.has_network = False  # whether the masks' files hold the trained A, too
        self.is_matched = any(ARMS[name].needs_match for name in config.sparse.arms)
        self.arms: dict[tuple[str, float, int], str] = {}  # (arm, sparsity, rewind) -> key; of several matches the best's

    def stages(self) -> list[Stage]:
        """Return all stages of the pair, parents before children; ValueError as `make_plan` says."""
        sparse, total = self.config.sparse, self.config.dense.epochs
        from_files = {sparsity: self.mask_file(sparsity) for sparsity in sparse.sparsities} if sparse.mask_from else {}
        self.has_network = any(stage.settings.has_network for stage in from_files.values())
        dense = self._trained(are_masks_given=bool(from_files))
        for name, stage in dense.items():
            self.theta |= {(name, int(epoch)): key for epoch, key in stage.checkpoints.items()} | {(name, total): stage.key}
        made: list[Stage]
        if from_files:
            made, self.masks = [*from_files.values()], {sparsity: stage.key for sparsity, stage in from_files.items()}
        else:
            made, self.masks = self.masks_of("A")
        self.rounds = [stage for stage in made if stage.kind == ITERATIVE]
        planned = [*dense.values(), *made]
        for sparsity, mask in self.masks.items():
            matches = self._matches(sparsity, mask) if self.is_matched else []
            planned += matches
            if self.config.connect:
                planned += [self.line_to_b(self.config.connect, match) for match in matches]
            for rewind in sparse.rewinds:
                planned += [stage for name in sparse.arms for stage in self._arm(name, sparsity, mask, rewind, matches)]
        return planned

    def _trained(self, *, are_masks_given: bool) -> dict[str, Stage]:
        """Plan the dense trainings that anything needs, with the epochs at which their weights are kept."""
        config = self.config
        sources = {ARMS[name].weights_from for name in config.sparse.arms}
        if self.has_network and "A" in sources:
            found = [name for name in config.sparse.arms if ARMS[name].weights_from == "A"]
            does = "starts" if len(found) == 1 else "start"
            raise ValueError(
                f"sparse.arms: {' and '.join(found)} {does} from A's early weights, and sparse.mask_from provides the "
                f"trained network only: remove {' and '.join(found)}"
            )
        epochs = {name: list(config.sparse.rewinds) if name in sources else [] for name in ("A", "B")}
        if self.is_matched:
            epochs["B"] += config.match_epochs
        if epochs["B"] and config.analyses.match_quality:
            epochs["B"] += config.analyses.match_quality.epochs
        if self.finder.network == "initial" and not are_masks_given:
            epochs["A"].append(0)
            if config.analyses.overlap and config.analyses.overlap.own:
                epochs["B"].append(0)
        # masks are found from A, and matching compares with it
        needs_a = not are_masks_given or (self.is_matched and not self.has_network)
        return {name: self.dense(name, asked) for name, asked in epochs.items() if asked or (name == "A" and needs_a)}

    def _matches(self, sparsity: float, mask: str) -> list[Stage]:
        """Plan the permutations under which A's mask at one sparsity is given to B."""
        a = mask if self.has_network else self.theta["A", self.config.dense.epochs]
        own = {"carries_masks": True, **({"sparsity": sparsity} if self.has_network else {})}
        found = [
            self.match(method, a, self.theta["B", epoch], epoch)
            for method in self.config.match.method
            for epoch in self.config.match_epochs
        ]
        return [replace(match, labels={**match.labels, **own}) for match in found]

    def _arm(self, name: str, sparsity: float, mask: str, rewind: int, matches: list[Stage]) -> list[Stage]:
        """Plan an arm in one cell: one network, or one for each match."""
        arm = ARMS[name]
        parents = {"weights": self.theta[arm.weights_from, rewind], "mask": mask}
        if not arm.needs_match:
            stage = self.sparse(name, parents, sparsity, rewind, None)
            self.arms[name, sparsity, rewind] = stage.key
            return [stage]
        planned: list[Stage] = []
        for match in matches:
            planned.append(self.sparse(name, {**parents, "permutation": match.key}, sparsity, rewind, match))
            if self._is_best(match):
                self.arms[name, sparsity, rewind] = planned[-1].key
        return planned

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
        if sparsity is not None and rewind is not None and (base, sparsity, rewind) in self.arms:
            return self.arms[base, sparsity, rewind]
        raise KeyError(f"this sweep trains no network {base!r}: no arm starts from it, or sparse.mask_from replaces it")

    def best_match(self, sparsity: float) -> Stage:
        """Plan the match that analyses mean by pi; KeyError as `find`."""
        a = self.masks[sparsity] if self.has_network else self.find("A", None, None)
        return self.match(self.config.match.method[0], a, self.find("B", None, None), self.config.dense.epochs)

    def masks_of(self, network: str) -> tuple[list[Stage], dict[float, str]]:
        """Plan the search for a network's masks: its stages, and by sparsity the key of the mask. KeyError as `find`."""
        if self.config.mask.finder == ITERATIVE:
            return self._imp(network, self.find(network, None, None))
        start = self.theta[network, 0] if self.finder.network == "initial" else self.find(network, None, None)
        found = [self.find_mask(network, start, sparsity) for sparsity in self.config.sparse.sparsities]
        return [*found], {stage.settings.sparsity: stage.key for stage in found}

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
