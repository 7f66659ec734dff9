"""Settles what a sweep file leaves to the machine: the arithmetic of trainings with `precision: auto`."""

from collections.abc import Mapping

from raylth.config.sweep import SweepConfig
from raylth.config.types import AUTO
from raylth.core.precision import Precision, fastest_precision

__all__ = ["precisions_of_auto", "settle"]

TRAININGS = ("dense", "imp", "sparse")


def precisions_of_auto(config: SweepConfig, recorded: Mapping[str, Precision] | None = None) -> dict[str, Precision]:
    """Return, for each kind of training with `precision: auto`, the one that is recorded, else the one for this machine.

    That is bf16 where the kind asks for no GPU and this processor has native bf16 instructions, else float32.
    """
    found: dict[str, Precision] = {}
    for kind in TRAININGS:
        if getattr(config, kind).precision == AUTO:
            here: Precision = "float32" if config.resources.of(kind).gpus != 0 else fastest_precision()
            found[kind] = (recorded or {}).get(kind, here)
    return found


def settle(config: SweepConfig, recorded: Mapping[str, Precision] | None = None) -> SweepConfig:
    """Return the settings with no `precision: auto` left: see `precisions_of_auto`."""
    found = precisions_of_auto(config, recorded)
    sections = {kind: getattr(config, kind).model_copy(update={"precision": name}) for kind, name in found.items()}
    return config.model_copy(update=sections) if sections else config
