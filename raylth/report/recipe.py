"""Whether a run was trained as the paper's networks were: what differs, and whether that moves accuracy."""

from dataclasses import dataclass
from typing import Any

from raylth.report.sources import paper_accuracy, paper_recipe

__all__ = ["Difference", "Recipe", "recipe_of"]

STAGES = {"dense": "dense", "imp": "IMP", "sparse": "sparse"}
MISSING = object()


@dataclass(frozen=True)
class Difference:
    """One thing in which a run is not what the paper did."""

    text: str  # for instance "dense batch size 1024, the paper 128"
    moves: bool  # whether it moves accuracy by more than noise


@dataclass(frozen=True)
class Recipe:
    """What a run differs in from the paper's recipe."""

    differences: tuple[Difference, ...]

    @property
    def is_the_papers(self) -> bool:
        """Whether nothing differs that moves accuracy: only then its numbers stand beside the paper's."""
        return not any(difference.moves for difference in self.differences)

    @property
    def lines(self) -> list[str]:
        """What differs, a line each; what hinders first."""
        ordered = sorted(self.differences, key=lambda difference: not difference.moves)
        return [difference.text for difference in ordered]


def recipe_of(manifest: dict[str, Any] | None, *, searched: bool = False) -> Recipe:
    """Return what a run differs in from the paper's recipe, by the settings in its manifest (`load_manifest`).

    `searched`: its arms have settings of their own, from a search. A run without a manifest, or whose manifest lacks settings
    that the paper gives, is unknown, which hinders a comparison as a difference does.
    """
    config = (manifest or {}).get("config")
    if not config:
        return Recipe((Difference("the run has no manifest, so its recipe is unknown", moves=True),))
    data, model = _value(config, "data.name"), _value(config, "model.name")
    paper = paper_accuracy()
    known = sorted(set(zip(paper["dataset"], paper["model"], strict=True)))
    if (data, model) not in known:
        theirs = ", ".join(f"{network} on {images}" for images, network in known)
        return Recipe((Difference(f"{model} on {data}, which the paper has not ({theirs})", moves=True),))
    found, unknown = list[Difference](), list[str]()
    for entry in paper_recipe()["settings"]:
        if data in entry["for"] and model in entry.get("models", [model]):
            differing, missing = _compared(config, entry)
            found += differing
            unknown += missing
    if searched:
        found.append(Difference("each arm at settings of its own, from a search, the paper one recipe for all", moves=True))
    if unknown:
        shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        found.insert(0, Difference(f"the run's manifest does not say {shown}", moves=True))
    always = [Difference(line["text"], moves=False) for line in paper_recipe()["always"] if data in line["for"]]
    return Recipe((*found, *always))


def _compared(config: dict[str, Any], entry: dict[str, Any]) -> tuple[list[Difference], list[str]]:
    """Return what differs in one entry of the recipe, and the settings that the run's manifest lacks."""
    stages = STAGES if "{stage}" in entry["setting"] else {"": ""}
    texts, unknown = [], []
    for stage, name in stages.items():
        setting = entry["setting"].format(stage=stage)
        value = _value(config, setting)
        value = entry.get("absent", MISSING) if value is MISSING else value
        if value is MISSING:
            unknown.append(setting)
        elif value not in entry["paper"]:
            theirs = entry.get("shown") or _text(entry["paper"][0])
            note = f" ({entry['note']})" if "note" in entry else ""
            texts.append((name, f"{entry['name']} {_text(value)}, the paper {theirs}{note}"))
    if len(texts) == len(STAGES) and len({text for _, text in texts}) == 1:
        texts = [("", texts[0][1])]  # of all trainings alike
    return [Difference(f"{name} {text}".strip(), entry.get("moves", True)) for name, text in texts], unknown


def _value(config: dict[str, Any], path: str) -> Any:
    found: Any = config
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            return MISSING
        found = found[part]
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, dict | list) and not value):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
