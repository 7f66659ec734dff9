"""One search: Ray Tune runs the trials that an Optuna study suggests, and stops weak ones early."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.callback import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raylth.cluster import ray_private
from raylth.cluster.nodes.budget_meter import Meter, Watchdog
from raylth.cluster.search.point_trial import EPOCHS, PointTrial
from raylth.cluster.slots import Nodes, room, slot_of
from raylth.cluster.worker.payload import SearchShared
from raylth.common.registry import nearest
from raylth.common.seeding import derive_seed
from raylth.config.search import SearchConfig, Space, StopConfig
from raylth.config.sweep import SweepConfig

__all__ = ["Study", "check_sampler", "first_points", "search_on_ray"]

MOST_EPOCHS = 10**7  # beyond any training: a trial ends by itself, never by having come so far
LOOK_SECONDS = 5.0  # between two looks at what the cluster has


@dataclass
class Study:
    """An Optuna study of some arms, kept in a journal file: trials of earlier runs are known when it continues.

    `config` has the base seed of the study's repeat, counted from 1.
    """

    name: str
    arms: list[str]
    config: SweepConfig
    file: Path
    repeat: int = 1
    record: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage = optuna.storages.JournalStorage(JournalFileBackend(str(self.file)))
        self.record = optuna.create_study(
            storage=self.storage,
            study_name=self.title,
            directions=["maximize"] * len(self.search.objectives),
            load_if_exists=True,
        )

    @property
    def title(self) -> str:
        """The study's name among those of all repeats."""
        return self.name if self.repeat == 1 else f"{self.name} repeat {self.repeat}"

    @property
    def search(self) -> SearchConfig:
        """The search's settings."""
        assert self.config.search is not None
        return self.config.search

    def ended(self) -> list[FrozenTrial]:
        """Return the trials that need not be run again."""
        return self.record.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def winners(self) -> list[FrozenTrial]:
        """Return the best trial, or the Pareto front; none when no training completed."""
        try:
            if len(self.search.objectives) == 1:
                return [self.record.best_trial]
            front = {tuple(trial.values): trial for trial in reversed(self.record.best_trials)}  # the first of those that tie
            return sorted(front.values(), key=lambda trial: trial.number)
        except ValueError:
            return []

    def forget_what_was_cut_off(self) -> list[dict[str, Any]]:
        """Return the points of trials whose process ended before they did, and close them: they are tried first again."""
        points = []
        for trial in self.record.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            points.append(dict(trial.params or trial.system_attrs.get("fixed_params", {})))
            if trial.state == TrialState.WAITING:
                self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            self.record.tell(trial.number, state=TrialState.FAIL)
        return [point for point in points if point]


class StudySearch(OptunaSearch):
    """Tune's searcher, which also reports early stops to Optuna as pruned: the training did not end at a low accuracy."""

    is_closed = False  # the budget is used up: no trial is started any more

    def suggest(self, trial_id: str) -> Any:
        """Return the next point, or that there is none."""
        return Searcher.FINISHED if self.is_closed else super().suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take in a trial's end."""
        if result is not None and EPOCHS in result:
            ray_private.set_trial_attribute(self, trial_id, EPOCHS, int(result[EPOCHS]))
        if result is not None and not error and not result.get("finished"):
            ray_private.tell_pruned(self, trial_id)
            return
        super().on_trial_complete(trial_id, result, error)


def search_on_ray(
    study: Study,
    shared: SearchShared,
    left: int,
    report: Callable[[str], None],
    storage: str,
    meter: Meter | None = None,
    nodes: Nodes | None = None,
) -> None:
    """Run what is left of a study's trials; Ray is there already. `report` is called with a line for each trial's end.

    `nodes` is what machines have, also those that may come. When the budget of `meter` is used up no further trial is
    started, and running ones finish.
    """
    search, slot, searcher = study.search, slot_of(study.config.resources.sparse), _searcher(study)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(PointTrial, shared=shared, arms=study.arms), {"CPU": slot.cpus, "GPU": slot.gpus}
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler(search.stops),
            num_samples=left,
            max_concurrent_trials=search.concurrent or max(1, room(nodes or _alive(), slot.cpus, slot.gpus)),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=storage,
            name=study.title,
            verbose=0,
            callbacks=[_Reporter(study, report, searcher, meter)],
            failure_config=tune.FailureConfig(max_failures=study.config.resources.retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        with contextlib.suppress(_Exhausted):
            tuner.fit()
    finally:
        if meter is not None:
            meter.save()


def _searcher(study: Study) -> StudySearch:
    """Make the searcher of a study: first come the points of trials that were cut off, or a new study's own to start at."""
    search = study.search
    again = study.forget_what_was_cut_off()
    first = [] if study.ended() or again else first_points(study.config)
    objectives: Any = search.objectives if len(search.objectives) > 1 else search.objectives[0]
    return StudySearch(
        {name: distribution(space) for name, space in search.space.items()},
        metric=objectives,
        mode=["max"] * len(search.objectives) if len(search.objectives) > 1 else "max",
        points_to_evaluate=[*again, *first],
        sampler=sampler(study),
        study_name=study.title,
        storage=study.storage,
    )


def _alive() -> Nodes:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def first_points(config: SweepConfig) -> list[dict[str, Any]]:
    """Return the points to try first: those of `search.start`, completed by the file's own values, or these alone.

    Raises ValueError for a value that is not in its space; the file's own may be outside, and is left out then.
    """
    search = config.search
    assert search is not None
    own = own_point(config)
    if search.start is None:
        return [own] if all(_is_in(search.space[name], value) for name, value in own.items()) else []
    points = [{**own, **point} for point in search.start]
    for point in points:
        for name, value in point.items():
            if not _is_in(search.space[name], value):
                raise ValueError(f"search.start: {name}: {value} is not in its space")
    return points


def _is_in(space: Space, value: object) -> bool:
    among = distribution(space)
    try:
        return among._contains(among.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


def own_point(config: SweepConfig) -> dict[str, Any]:
    """Return what the sweep file itself says of the settings that are looked for."""
    assert config.search is not None
    raw: Any = config.model_dump(mode="json")
    point = {}
    for name in config.search.space:
        value = raw
        for part in name.split("."):
            value = value[part]
        point[name] = value[0] if isinstance(value, list) else value
    return point


def distribution(space: Space) -> optuna.distributions.BaseDistribution:
    """Return a space as Optuna's distribution."""
    if space.choices is not None:
        return optuna.distributions.CategoricalDistribution(space.choices)
    assert space.low is not None
    assert space.high is not None
    if space.type == "int":
        step = int(space.step or 1)
        return optuna.distributions.IntDistribution(int(space.low), int(space.high), log=space.log, step=step)
    return optuna.distributions.FloatDistribution(space.low, space.high, log=space.log, step=space.step)


def sampler(study: Study) -> optuna.samplers.BaseSampler:
    """Make the sampler that the file names. Its draws, and its seed, continue from what was tried.

    A seed that the file itself gives is the first repeat's; the others have seeds that are derived from it.
    """
    asked = study.search.sampler
    settings = dict(asked.settings)
    if study.repeat > 1 and isinstance(settings.get("seed"), int):
        settings["seed"] = derive_seed(settings["seed"], "search repeat", study.repeat) % 2**31
    if asked.name == "TPESampler":
        settings = {"constant_liar": True, "seed": study.config.seeds.base % 2**31 + len(study.ended()), **settings}
    return _make_sampler(asked.name, settings)


def check_sampler(search: SearchConfig) -> None:
    """Raise ValueError for a sampler that Optuna does not have, or that does not take its settings."""
    _make_sampler(search.sampler.name, search.sampler.settings)


def _make_sampler(name: str, settings: dict[str, Any]) -> optuna.samplers.BaseSampler:
    kind = getattr(optuna.samplers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, optuna.samplers.BaseSampler)):
        known = [name for name in optuna.samplers.__all__ if name.endswith("Sampler")]
        raise ValueError(f"search.sampler.name: unknown sampler {name!r}{nearest(name, known)} (known: {', '.join(known)})")
    try:
        made: optuna.samplers.BaseSampler = kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"search.sampler.settings: {error}") from error
    return made


def scheduler(stop: StopConfig | None) -> TrialScheduler:
    """Make Tune's scheduler that stops weak trainings."""
    if stop is None:
        return FIFOScheduler()
    common: dict[str, Any] = {"time_attr": EPOCHS, "metric": "accuracy", "mode": "max"}
    if stop.name == "median":
        return MedianStoppingRule(grace_period=stop.grace_epochs, hard_stop=True, **common)
    return AsyncHyperBandScheduler(grace_period=stop.grace_epochs, reduction_factor=stop.factor, max_t=MOST_EPOCHS, **common)


class _Exhausted(Exception):  # the end of a loop, no error
    """The budget is used up, and nothing runs any more."""


class _Reporter(Callback):
    """Tells each trial's end, and charges for the machines."""

    def __init__(self, study: Study, report: Callable[[str], None], searcher: StudySearch, meter: Meter | None) -> None:
        self.study, self.report, self.searcher, self.meter = study, report, searcher, meter
        self.looked_at = float("-inf")
        self.slot = slot_of(study.config.resources.sparse)
        self.watchdog = Watchdog(study.config.resources.capacity_minutes, ray_private.unavailable_node_types)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        is_running = any(trial.status == Trial.RUNNING for trial in trials)
        if self.searcher.is_closed and not is_running:
            raise _Exhausted
        if time.monotonic() - self.looked_at < LOOK_SECONDS:
            return
        self.looked_at = time.monotonic()
        nodes = _alive()
        if (silence := self.watchdog.look(nodes, [("sparse", self.slot, 1)])) is not None:
            self.report(silence)
        if self.meter is not None:
            self.meter.tick(nodes)
            self.searcher.is_closed = self.meter.exhausted is not None

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        number = len(self.study.ended())
        point = ", ".join(f"{name} {trial.config[name]:.4g}" if isinstance(trial.config[name], float) else
                          f"{name} {trial.config[name]}" for name in self.study.search.space)  # fmt: skip
        how = "" if result.get("finished") else f" after {result.get(EPOCHS, 0)} epochs, stopped"
        self.report(
            f"{self.study.title} {number}/{self.study.search.trials}: {result.get('accuracy', 0.0):.1f} %{how}: {point}"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = str(ray_private.error_of_trial(trial) or "").strip().splitlines()
        self.report(f"{self.study.title}: a trial failed: {lines[-1] if lines else 'unknown reason'}")
