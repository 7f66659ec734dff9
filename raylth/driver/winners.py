"""The winners of a search: the best settings of each study, the networks that are trained at them, and what was tried."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raylth.config.overrides import changed
from raylth.config.search import edges
from raylth.config.sweep import SweepConfig
from raylth.driver.prepare import plan_of
from raylth.stages import Plan, Stage

if TYPE_CHECKING:
    from raylth.cluster.search.study import Study

__all__ = ["SUMMARY", "Winner", "joined_plan", "plan_of_winners", "summary_of", "winners_of"]

SUMMARY = "search.json"  # in the folder of the winners' run: what was tried


@dataclass(frozen=True)
class Winner:
    """The settings at which one study found its arms best."""

    study: str  # its title
    arms: list[str]
    params: dict[str, Any]
    repeat: int  # of the search, from 1
    edges: list[str]  # settings that lie at the end of their range

    @property
    def identity(self) -> list[Any]:
        """What the name of the winners' run is made of."""
        return [self.arms, self.params, *([self.repeat] if self.repeat > 1 else [])]


def winners_of(study: "Study") -> list[Winner]:
    """Return a study's best, or its Pareto front; none when no training completed."""
    return [
        Winner(study.title, study.arms, trial.params, study.repeat, edges(study.search.space, trial.params))
        for trial in study.winners()
    ]


def plan_of_winners(config: SweepConfig, winners: Sequence[Winner]) -> Plan:
    """Plan every winner's arms at its settings; what they share is there once.

    A sparse network's label `repeats` names the repeats that found its settings: "1", or "1,3".
    """
    planned = [(winner, plan_of(changed(config, {**winner.params, "sparse.arms": winner.arms}))) for winner in winners]
    repeats: dict[str, set[int]] = {}
    for winner, plan in planned:
        for stage in plan.stages:
            repeats.setdefault(stage.key, set()).add(winner.repeat)
    joined = joined_plan(config, [plan for _, plan in planned])
    labelled = [
        replace(stage, labels={**stage.labels, "repeats": ",".join(map(str, sorted(repeats[stage.key])))})
        if stage.kind == "sparse"
        else stage
        for stage in joined.stages
    ]
    return Plan(config, tuple(labelled))


def joined_plan(config: SweepConfig, plans: Iterable[Plan]) -> Plan:
    """Join plans: each stage once, kinds in the order of a sweep's own plan."""
    stages: dict[str, Stage] = {}
    for stage in (stage for plan in plans for stage in plan.stages):
        before = stages.get(stage.key, stage)  # arms ask one dense network for different checkpoints
        stages[stage.key] = replace(stage, checkpoints={**before.checkpoints, **stage.checkpoints})
    order = {kind: number for number, kind in enumerate(dict.fromkeys(stage.kind for stage in plan_of(config).stages))}
    return Plan(config, tuple(sorted(stages.values(), key=lambda stage: order[stage.kind])))


def summary_of(studies: "Sequence[Study]") -> dict[str, Any]:
    """Return what was tried, as the report reads it."""
    search = studies[0].search
    found = []
    for study in studies:
        best = {trial.number for trial in study.winners()}
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "is_best": trial.number in best,
                "params": trial.params,
                "edges": edges(search.space, trial.params) if trial.number in best else [],
                "epochs": trial.user_attrs.get("epochs"),
                "values": dict(zip(search.objectives, trial.values or [], strict=False)),
            }
            for trial in study.ended()
        ]
        found.append({"study": study.name, "repeat": study.repeat, "trials": trials})
    return {"holdout": search.holdout, "objectives": list(search.objectives), "studies": found}
