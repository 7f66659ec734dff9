"""The source files of a user's own that a sweep runs: its networks, data, arms, finders, matchers, analyses and trackers."""

from collections.abc import Callable, Iterator

from raylth.analyses import ANALYSES
from raylth.arms import ARMS, Arm
from raylth.config.sweep import SweepConfig
from raylth.config.tracking import TRACKERS
from raylth.core.data import DATASETS
from raylth.core.matching import MATCHERS
from raylth.core.models import MODELS
from raylth.core.models.code import own_sources
from raylth.core.pruning import FINDERS
from raylth.core.pruning.finder import DynamicFinder

__all__ = ["sources_of"]


def sources_of(config: SweepConfig) -> dict[str, bytes]:
    """Return the source of each module of a user's own that a sweep runs, by its name, with those that it imports."""
    found: dict[str, bytes] = {}
    for name, function in _own(config):
        found |= own_sources(name, function)
    return dict(sorted(found.items()))


def _own(config: SweepConfig) -> Iterator[tuple[str, Callable[..., object]]]:
    """Yield the name and the function of everything in a sweep that can be a user's own."""
    yield config.model.name, MODELS[config.model.name]
    yield config.data.name, DATASETS[config.data.name].load
    for name in config.sparse.arms:
        transform = ARMS[name].transform
        yield name, transform if callable(transform) else Arm
    for name in config.mask.finders:
        finder = FINDERS[name]
        yield name, finder.update if isinstance(finder, DynamicFinder) else finder.find
    for name in config.match.method:
        yield name, MATCHERS[name].function
    for name in config.analyses.custom:
        yield name, ANALYSES[name].measure
    for name in config.log.custom:
        yield name, TRACKERS[name].open
