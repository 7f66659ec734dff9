"""What is recorded on the way, and where else it is written: settings that change no result."""

from pydantic import Field

from raylth.values import Integer, Settings

__all__ = ["LogConfig"]


class LogConfig(Settings):
    """What is recorded on the way; nothing here changes a result."""

    evaluate_every: Integer = Field(10, ge=0, description="Epochs between test evaluations of a curve; 0: only at the end.")
    tensorboard: str | None = Field(
        None,
        min_length=1,
        description="Folder of the driver's machine for TensorBoard files, a run per network; null is none.",
    )
