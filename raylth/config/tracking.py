"""What is recorded during a sweep, and to which experiment trackers: settings that change no result."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny

from raylth.common.paths import expanded
from raylth.common.registry import Registry
from raylth.config.plugin_settings import read_plugins
from raylth.config.types import Folder, Integer, Settings

__all__ = ["TRACKERS", "LogConfig", "Tracker", "WandbConfig"]

TRACKING = r"sqlite:///.+|file:.+|https?://[^/]+.*|(postgresql|mysql|mssql)(\+\w+)?://.+"


def _is_project(name: str) -> str:
    """Refuse what W&B does not take as a project's name."""
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", name):
        raise ValueError(f"{name!r} is not the name of a W&B project: up to 128 characters, none of / \\ # ? % :")
    return name


def _is_tracking(uri: str) -> str:
    """Fill in `~` and variables; refuse what is no place for MLflow's runs, and credentials, which results would repeat."""
    if not re.fullmatch(TRACKING, uri):
        raise ValueError(f"{uri!r} is not a tracking URI: expected sqlite:///FILE, file:FOLDER, http(s)://HOST or a database")
    prefix = re.match(r"sqlite:///|file:(//)?", uri)
    if prefix is not None:
        uri = prefix[0] + expanded(uri[prefix.end() :])
    if re.match(r"[^/]+://[^/@]*:[^/@]*@", uri):
        raise ValueError("a password belongs in the environment, such as MLFLOW_TRACKING_PASSWORD, not in the URI")
    return uri


class WandbConfig(Settings):
    """Weights & Biases: a run per network, a group per sweep."""

    project: Annotated[str, AfterValidator(_is_project)] = Field("raylth", description="W&B's project.")
    mode: Literal["online", "offline"] = Field(
        "offline",
        description="online: to the server for which W&B has an API key; offline: to files, which `wandb sync` uploads "
        "later.",
    )
    folder: Folder = Field("raylth-wandb", description="Folder of the driver's machine for W&B's files.")


@dataclass(frozen=True)
class Tracker:
    """An experiment tracker of one's own, named in `log.custom`.

    `open(settings, sweep, run)` returns an object with a method `write(network)`, which is called in a thread of its own
    with each `raylth.trackers.Network` whose training has ended; what `write` raises is worth another try, and three
    failures in a row switch the tracker off. It is to write no network twice: a sweep that continues hands over those that it
    handed over before.
    """

    open: Callable[[Any, str, str], Any]  # (settings, name of the sweep, name of the run)
    settings: type[Settings]


TRACKERS: Registry[Tracker] = Registry("tracker", group="raylth.trackers")


class LogConfig(Settings):
    """What is recorded during a sweep; nothing here changes a result."""

    evaluate_every: Integer = Field(10, ge=0, description="Epochs between test evaluations of a curve; 0: only at the end.")
    tensorboard: Folder | None = Field(
        None,
        description="Folder of the driver's machine for TensorBoard files, a run per network; null is none.",
    )
    wandb: WandbConfig | None = Field(None, description="Weights & Biases, a run per network; null is none.")
    mlflow: Annotated[str, AfterValidator(_is_tracking)] | None = Field(
        None, description="MLflow's tracking URI, such as sqlite:///mlflow.db or a server, a run per network; null is none."
    )
    custom: Annotated[
        dict[str, SerializeAsAny[Settings]],
        BeforeValidator(
            lambda raw: read_plugins(raw, TRACKERS, Tracker, Settings, public="raylth.trackers.Tracker"),
            json_schema_input_type=dict[str, Any],
        ),
    ] = Field(
        {},
        description="Custom trackers and their settings: the name of an installed package's entry point, or the import "
        "path package.module:object of a raylth.trackers.Tracker.",
    )
