"""Settings of a hyperparameter search; they decide which networks are trained at all."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from raylth.common.seeding import derive_seed
from raylth.config.types import Count, Integer, Real, Settings, unique

__all__ = ["FinalConfig", "SamplerConfig", "SearchConfig", "Space", "StopConfig", "edges", "judging_base"]

MOST_POINTS = 1_000  # each is planned before anything is started
MOST_STEPS = 2**53  # as a float counts them
AT_THE_EDGE = 0.02  # of a range, on its scale


def _plain(value: Any) -> Any:
    """Refuse what JSON cannot hold: settings travel to workers and into a study's journal as that."""
    below = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []
    for each in below:
        _plain(each)
    if not isinstance(value, str | bool | int | float | list | dict | None):
        raise ValueError(f"should be text, a number, true, false, a list or settings, found {value!r}")
    return value


Plain = Annotated[Any, AfterValidator(_plain)]


class Space(Settings):
    """Search space of one setting: one of Optuna's distributions."""

    type: Literal["float", "int", "categorical"] = Field(description="Optuna's distribution.")
    low: Real | None = Field(None, description="Lower bound of numbers, included.")
    high: Real | None = Field(None, description="Upper bound of numbers, included.")
    log: bool = Field(False, description="Draw numbers on a logarithmic scale.")
    step: Real | None = Field(None, gt=0, description="Distance between numbers; null: any (float) or 1 (int).")
    choices: list[str | bool | int | float | None] | None = Field(
        None, min_length=1, max_length=MOST_POINTS, description="Values of a categorical space."
    )

    @model_validator(mode="after")
    def _complete(self) -> "Space":
        if self.type == "categorical":
            if self.choices is None or self.low is not None or self.high is not None:
                raise ValueError("a categorical space has choices, and neither low nor high")
            return self
        if self.low is None or self.high is None or self.choices is not None:
            raise ValueError(f"a space of type {self.type} has low and high, and no choices")
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} is not below high: {self.high:g}")
        if self.step is not None and (self.high - self.low) / self.step > MOST_STEPS:
            raise ValueError(f"step: {self.step:g} is too small for numbers from {self.low:g} to {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: needs a low above 0, and no step")
        if self.type == "int" and any(
            value is not None and value != int(value) for value in (self.low, self.high, self.step)
        ):
            raise ValueError("a space of type int has whole numbers")
        return self

    @property
    def ends(self) -> list[Any]:
        """Values at which the whole space is tried for sense: all choices, or both ends."""
        if self.choices is not None:
            return list(self.choices)
        ends = [value for value in (self.low, self.high) if value is not None]
        return [int(value) for value in ends] if self.type == "int" else ends

    def edge(self, value: Any) -> str | None:
        """Return "lower" or "upper" for a number within 2 % of that end of the range on its scale, or the first or last that
        can be drawn; None for others, and for choices, which have no order."""
        if self.low is None or self.high is None:
            return None
        step = self.step or (1.0 if self.type == "int" else None)
        last = self.high if step is None else self.low + step * math.floor((self.high - self.low) / step + 1e-9)
        low, high, place = (math.log(number) if self.log else number for number in (self.low, last, value))
        if high <= low:
            return None  # one value alone
        share = (place - low) / (high - low)
        return "lower" if share <= AT_THE_EDGE else "upper" if share >= 1 - AT_THE_EDGE else None


def edges(space: Mapping[str, Space], point: Mapping[str, Any]) -> list[str]:
    """Name the settings of a point that lie at an end of their range, beyond which better ones may be."""
    found = [(name, point[name], space[name], space[name].edge(point[name])) for name in point if name in space]
    return [
        f"{name} = {value:.4g} is at the {end} end of its range ({where.low:g} to {where.high:g})"
        for name, value, where, end in found
        if end
    ]


def judging_base(base: int, repeat: int) -> int:
    """Return the base seed of the networks that judge the trials of one repeat, counted from 1, which has the sweep's own."""
    return base if repeat == 1 else derive_seed(base, "search repeat", repeat)


class SamplerConfig(Settings):
    """Optuna's sampler."""

    name: str = Field("TPESampler", description="Class in optuna.samplers.")
    settings: dict[str, Plain] = Field(
        {},
        description="Its arguments. TPESampler has constant_liar (running trials count as bad, so that concurrent trials"
        " explore different points) and a seed from seeds.base.",
    )


class StopConfig(Settings):
    """Early stopping of weak trials, by a scheduler of Ray Tune."""

    name: Literal["asha", "median"] = Field("asha", description="asha (Li et al. 2020) or median (Golovin et al. 2017).")
    grace_epochs: Count = Field(5, description="Epochs before a training may be stopped, and between two decisions.")
    factor: Real = Field(3.0, gt=1, description="asha: reduction factor; one in this many trials continues at each rung.")


class FinalConfig(Settings):
    """The runs in which the winners are evaluated: fresh seeds, all training samples, the test split."""

    base: Integer = Field(1_000_000, ge=0, lt=2**63, description="Base seed, other than the search's.")
    replicates: Count = Field(3, description="Independent pairs of networks.")


class SearchConfig(Settings):
    """Search for each arm's best setting (or one for all), evaluated on a held-out part of the training split."""

    space: dict[str, Space] = Field(min_length=1, description="Key path of a setting, such as sparse.lr -> its search space.")
    trials: Count = Field(20, description="Trials in each study.")
    arms: Literal["each", "shared"] = Field(
        "each", description="each: a study for each arm; shared: one study of the mean over arms."
    )
    holdout: Count = Field(description="Number of training samples held out to evaluate trials; the test split is not read.")
    replicates: Count = Field(1, description="Pairs of networks over which each trial's objective is averaged.")
    repeats: Count = Field(
        1,
        le=1_000,
        description="Independent searches, each with its own sampler and its own pairs of networks. All winners are "
        "trained, and intervals include the variation between them. When the number is raised, finished "
        "searches are kept.",
    )
    objectives: Annotated[list[Literal["accuracy", "model_sparsity"]], Field(min_length=1)] = Field(
        ["accuracy"], description="What is maximised; several give a Pareto front."
    )
    start: list[dict[str, Plain]] | None = Field(
        None, max_length=MOST_POINTS, description="Points that are tried first; null: the file's own settings."
    )
    sampler: SamplerConfig = SamplerConfig()
    stop: StopConfig | None = Field(
        StopConfig(), description="null: every training completes, as it always does with several objectives."
    )
    concurrent: Count | None = Field(None, description="Maximum number of concurrent trials; null: as many as fit.")
    final: FinalConfig = FinalConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "SearchConfig":
        unique(self.objectives)
        for point in self.start or []:
            for name in point:
                if name not in self.space:
                    raise ValueError(f"start: {name!r} is not a setting of search.space")
        return self

    @property
    def stops(self) -> StopConfig | None:
        """How weak trainings are stopped; with several objectives they are not."""
        return self.stop if len(self.objectives) == 1 else None
