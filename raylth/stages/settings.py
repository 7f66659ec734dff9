"""What each kind of stage reads: frozen settings, and the one way in which they become the JSON behind a stage's key.

A field with a default was added later, or does not apply to some stages: at its default it is omitted, so that keys stay
valid.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self, get_args, get_type_hints

from raylth.common.omit import omit_defaults
from raylth.core.pruning.structure import Structure
from raylth.core.training.recipe import Recipe

__all__ = [
    "Amount",
    "AnalysisSettings",
    "ConnectSettings",
    "DataSettings",
    "DenseSettings",
    "DynamicSettings",
    "EndsSettings",
    "EnsembleSettings",
    "EvaluationSettings",
    "FindSettings",
    "ImpSettings",
    "MaskSettings",
    "MatchSettings",
    "NetworkSettings",
    "OverlapSettings",
    "OwnTransformSettings",
    "PlaneSettings",
    "Serializable",
    "SparseSettings",
    "StageSettings",
    "StructureSettings",
    "TrainingSettings",
    "TransformSettings",
]


@dataclass(frozen=True, kw_only=True)
class Serializable:
    """Settings that can be written as JSON-like data and read back."""

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON-like data, as keys hold them; those that have a default are omitted at it."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        defaults = {each.name: each.default for each in fields(self) if each.default is not MISSING}
        return {name: _plain(value) for name, value in omit_defaults(values, defaults, dict.fromkeys(defaults, ())).items()}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Return the settings of which `plain` returned the data; TypeError for a field that they do not have."""
        types = get_type_hints(cls)
        return cls(**{name: _read(types.get(name), value) for name, value in data.items()})


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Serializable):
    """A network without its values."""

    name: str
    width: float
    init: str  # "own" or "torch"
    num_classes: int
    in_shape: tuple[int, ...]  # of one sample
    code: str | None = None  # `code_of` it, where it is a user's own
    options: tuple[tuple[str, Any], ...] = ()  # the network's own keyword arguments, by name

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `build_model`, `build_shapes` and `init_model`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DataSettings(Serializable):
    """The samples that a stage reads: the training split, and where it evaluates, what on."""

    name: str
    layout: str | None  # how the files lie, where that matters
    normalisation: str
    num_train: int
    code: str | None = None  # `code_of` what loads them, where it is a user's own
    resolution: int | None = None  # side in pixels, of images that stay in files
    holdout: int | None = None  # training samples to evaluate on, instead of the test split
    num_test: int | None = None


@dataclass(frozen=True, kw_only=True)
class StructureSettings(Serializable):
    """The pattern of A's mask."""

    pattern: str
    n: int | None = None
    m: int | None = None
    rows: int | None = None
    columns: int | None = None
    prune_shortcuts: bool = False  # whether residual shortcuts have it, too

    @property
    def structure(self) -> Structure:
        """The pattern as the numerics have it."""
        return Structure(self.pattern, self.n, self.m, self.rows, self.columns)


@dataclass(frozen=True, kw_only=True)
class StageSettings(Serializable):
    """What every stage has."""

    model: NetworkSettings
    data: DataSettings


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(StageSettings):
    """What every training has."""

    augment: str
    recipe: Recipe
    seed: int  # of the order of samples and their augmentation

    @property
    def program(self) -> tuple[object, ...]:
        """What trainings of one kind must share to be trained as one program: all but seeds and masks."""
        return (self.model, self.data, self.augment, self.recipe)


@dataclass(frozen=True, kw_only=True)
class DenseSettings(TrainingSettings):
    """Stage `dense`."""

    init_seed: int


@dataclass(frozen=True, kw_only=True)
class DynamicSettings(TrainingSettings):
    """Stage `dynamic`."""

    init_seed: int
    finder: str
    sparsity: float
    prune_shortcuts: bool
    every: int  # steps between two changes of the mask
    until: float  # share of the training in which it changes
    fraction: float
    finder_seed: int  # for random numbers
    code: str | None = None  # `code_of` the finder, where it is a user's own

    @property
    def program(self) -> tuple[object, ...]:
        """As that of any training."""
        return (*super().program, self.finder, self.prune_shortcuts, self.every, self.until, self.fraction, self.code)


@dataclass(frozen=True, kw_only=True)
class Amount(Serializable):
    """How much one round prunes: a fraction of the weights still alive, or what is missing to a sparsity."""

    fraction: float | None = None
    sparsity: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImpSettings(TrainingSettings):
    """Stage `imp`."""

    amount: Amount
    prune_shortcuts: bool
    structure: StructureSettings | None = None  # None: any weights

    @property
    def program(self) -> tuple[object, ...]:
        """As that of any training."""
        return (*super().program, self.prune_shortcuts)


@dataclass(frozen=True, kw_only=True)
class TransformSettings(Serializable):
    """What happens to a mask before an arm is trained under it."""

    name: str  # of the transform, or of the arm whose own it is
    seed: int | None = None  # for random numbers, where the arm draws any

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "TransformSettings":
        """As those of any settings."""
        return OwnTransformSettings(**data) if "code" in data else TransformSettings(**data)


@dataclass(frozen=True, kw_only=True)
class OwnTransformSettings(TransformSettings):
    """The transform of a custom arm, which is a function."""

    code: str | None  # `code_of` it; None for an installed library's


@dataclass(frozen=True, kw_only=True)
class SparseSettings(TrainingSettings):
    """Stage `sparse`."""

    mask_transform: TransformSettings
    signs: str = "own"  # of the alive weights: "own", or "A", those of the parent `signs`
    structure: StructureSettings | None = None


@dataclass(frozen=True, kw_only=True)
class FindSettings(StageSettings):
    """Stage `find`."""

    finder: str
    sparsity: float
    prune_shortcuts: bool
    code: str | None = None
    seed: int | None = None  # for random numbers, where the finder draws any
    structure: StructureSettings | None = None


@dataclass(frozen=True, kw_only=True)
class MaskSettings(StageSettings):
    """Stage `mask`."""

    sha256: str  # of the file
    has_network: bool  # whether the file holds weights, too
    prune_shortcuts: bool


@dataclass(frozen=True, kw_only=True)
class MatchSettings(StageSettings):
    """Stages `match` and `universe`."""

    method: str
    code: str | None = None
    samples: int | None = None  # of the training split, where the matcher reads any
    augment: str | None = None  # None: as they are
    own: Mapping[str, Any]  # those that `Matcher.settings` names; they lie beside the others in keys
    seed: int | None = None  # for random numbers, where any are drawn
    places: Mapping[str, int] | None = None  # "a" and "b" -> which network of the universe, where there is one
    structure: StructureSettings | None = None  # which permutations keep

    def plain(self) -> dict[str, Any]:
        """As those of any settings."""
        found = super().plain()
        del found["own"]
        return {**found, **self.own}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """As those of any settings."""
        names = {each.name for each in fields(cls)}
        own = {name: value for name, value in data.items() if name not in names}
        return super().read({**{name: value for name, value in data.items() if name in names}, "own": own})


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(StageSettings):
    """What measures networks on training samples and on the test split."""

    samples: int  # of the training split


@dataclass(frozen=True, kw_only=True)
class EndsSettings(EvaluationSettings):
    """What measures networks that may be moved by pi or its inverse."""

    moves: Mapping[str, str | None] | None = None  # role -> move; None: `a` by pi, where there is a permutation


@dataclass(frozen=True, kw_only=True)
class ConnectSettings(EndsSettings):
    """Stage `connect`."""

    points: int
    corrections: tuple[str, ...]
    temperature: bool = False  # whether losses are also measured at the temperature of the smallest


@dataclass(frozen=True, kw_only=True)
class PlaneSettings(EndsSettings):
    """Stage `plane`."""

    resolution: int  # points along each side
    margin: float
    correction: str


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings(EndsSettings):
    """Stage `analysis`; `places` is of one that spans replicates."""

    analysis: str
    settings: Mapping[str, Any]  # the plug-in's, which its own class reads
    seed: int
    code: str | None = None
    places: Mapping[str, int] | None = None  # role of a network -> which network of the universe has the same order of units


@dataclass(frozen=True, kw_only=True)
class OverlapSettings(StageSettings):
    """Stage `overlap`."""


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings(StageSettings):
    """Stage `ensemble`."""


def _plain(value: Any) -> Any:
    if isinstance(value, Serializable):
        return value.plain()
    if isinstance(value, Recipe):
        return {name: _plain(each) for name, each in value.settings().items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _read(declared: Any, value: Any) -> Any:
    for each in (declared, *get_args(declared)):
        if isinstance(each, type) and issubclass(each, Serializable) and isinstance(value, Mapping):
            return each.read(value)
    if declared is Recipe:
        return Recipe(**{name: _read(None, each) for name, each in value.items()})
    return tuple(_read(None, each) for each in value) if isinstance(value, list) else value
