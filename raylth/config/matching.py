"""How A is matched to B."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from raylth.config.types import Count, Epoch, Integer, Rate, Settings, known, unique
from raylth.core.matching.matcher import MATCHERS, Matcher

__all__ = ["MatchConfig"]

MatchMethod = Annotated[str, known(MATCHERS, Matcher, public="raylth.core.matching.Matcher")]


def _listed(value: object) -> object:
    """Take a single name for a list of one."""
    return [value] if isinstance(value, str) else value


class MatchConfig(Settings):
    """Matching A to B: the permutation that is applied to A's mask for B."""

    method: Annotated[
        list[MatchMethod],
        Field(min_length=1),
        AfterValidator(unique),
        BeforeValidator(_listed, json_schema_input_type=MatchMethod | list[MatchMethod]),
    ] = Field(
        ["activation"],
        description="How the permutation is found; several give one permuted arm each. activation: the paper's; weight: "
        "Git Re-Basin, Algorithm 1; learned: its Algorithm 3; identity and random are controls; or an "
        "installed package's entry point, or the import path package.module:object of a custom "
        "raylth.core.matching.Matcher.",
    )
    epochs: Annotated[list[Epoch], AfterValidator(unique)] | None = Field(
        None, min_length=1, description="Epochs of B at which the permutation is found; null is [T]. Below T: Table 15."
    )
    samples: Count | None = Field(None, description="Training samples to match on (classes in proportion); null is all.")
    augment: bool = Field(
        False,
        description="Match on training images that are augmented as in training, each once (the published code), with "
        "methods that read samples; else on unaugmented images.",
    )
    sites: Literal["post_activation", "pre_activation"] = Field(
        "post_activation", description="Where activation matching compares units."
    )
    stream_site: dict[str, Integer] = Field(
        {},
        description="Group -> index of the activation whose units are compared: -1 the last (default), -2 the last but "
        "one. The paper uses -2 for ResNet-20's last stream (layer3.0.conv2).",
    )
    learned_epochs: Count = Field(5, description="Passes of learned matching over the samples.")
    learned_lr: Rate = Field(
        0.05, description="Adam's learning rate in learned matching, relative to each tensor's standard deviation."
    )

    @model_validator(mode="after")
    def _has_what_matchers_read(self) -> "MatchConfig":
        known = set(type(self).model_fields)
        for name in self.method:
            for field in MATCHERS[name].settings.values():
                if field not in known:
                    raise ValueError(f"method: {name}: its settings name {field!r}, which is no setting of match")
        return self
