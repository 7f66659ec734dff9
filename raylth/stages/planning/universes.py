"""Plans matches of all networks of a width at once, and the permutations of pairs that follow from them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from raylth.common.seeding import derive_seed
from raylth.config.sweep import SweepConfig
from raylth.core.pruning.finder import is_dynamic
from raylth.stages.planning.stage_maker import StageMaker
from raylth.stages.settings import MatchSettings
from raylth.stages.stage import Stage, stage_key

__all__ = ["Universes", "through_universe", "universe"]


def universe(
    maker: StageMaker, method: str, networks: Sequence[str], epoch: int, samples: int | None = None
) -> Stage[MatchSettings]:
    """Plan the permutations of networks, by their keys, to one order of units; `epoch` is that of the Bs among them."""
    settings = maker.match_settings(method, samples, derive_seed(maker.config.seeds.base, "universe") % 2**32)
    parents = {str(number): key for number, key in enumerate(networks)}
    labels = {"width": maker.labels["width"], "match_epoch": epoch, "match_method": method}
    return Stage("universe", stage_key("universe", settings, parents), settings, parents, labels)


def through_universe(match: Stage[MatchSettings], found: Stage[MatchSettings]) -> Stage[MatchSettings]:
    """Return the match of A and B that reads its permutation from a universe in which both are."""
    numbers = {key: int(number) for number, key in found.parents.items()}
    places = {role: numbers[key] for role, key in match.parents.items()}
    settings = replace(match.settings, samples=None, augment=None, own={}, seed=None, places=places)
    parents = {**match.parents, "universe": found.key}
    labels = {**match.labels, "match_samples": None}
    return replace(match, key=stage_key("match", settings, parents), settings=settings, parents=parents, labels=labels)


class Universes:
    """The universes of all dense networks of one width, planned as they are asked for, each once."""

    def __init__(self, config: SweepConfig, width: float) -> None:
        self.config, self.width = config, width
        self.stages: dict[tuple[str, str, int, int | None], Stage[MatchSettings]] = {}

    def of(self, method: str, dense_a: str, epoch: int, samples: int | None) -> Stage[MatchSettings]:
        """Plan the universe of the As, of which `dense_a` is one, and the Bs at an epoch of all replicates."""
        together = next(keys for keys in self._as if dense_a in keys)
        place = (method, together[0], epoch, samples)
        if place not in self.stages:
            networks = [key for pair in zip(together, self._bs(epoch), strict=True) for key in pair]
            self.stages[place] = universe(self._makers[0], method, list(dict.fromkeys(networks)), epoch, samples)
        return self.stages[place]

    @cached_property
    def _makers(self) -> list[StageMaker]:
        return [StageMaker(self.config, self.width, replicate) for replicate in range(self.config.seeds.replicates)]

    @cached_property
    def _as(self) -> list[list[str]]:
        """The keys of the trained As of all replicates; where they come with masks, those of each sparsity."""
        files = [maker.mask_files for maker in self._makers]
        provided = [sparsity for sparsity, stage in files[0].items() if stage.settings.has_network]
        if provided:
            return [[each[sparsity].key for each in files] for sparsity in provided]
        found = [[maker.dense("A", []).key for maker in self._makers]]
        for finder in filter(is_dynamic, self.config.mask.finders):
            for sparsity in self.config.sparse.sparsities:
                found.append([maker.dynamic(finder, "A", sparsity, []).key for maker in self._makers])
        return found

    def _bs(self, epoch: int) -> list[str]:
        """Return the keys of the Bs of all replicates at an epoch."""
        stages = [maker.dense("B", [epoch]) for maker in self._makers]
        return [stage.checkpoints.get(str(epoch), stage.key) for stage in stages]
