"""The network."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, Field

from raylth.config.types import Settings, Width, known, unique
from raylth.core.models import MODELS

__all__ = ["ModelConfig"]


class ModelConfig(Settings):
    """The architecture; each width is a sweep axis of its own."""

    name: Annotated[str, known(MODELS)] = Field(
        validation_alias=AliasChoices("name", "import"),
        description="Network: a name of this package or of an installed package's entry point, torchvision:NAME, "
        "timm:NAME, or the import path package.module:function of a custom one, called with width, "
        "num_classes and in_shape.",
    )
    widths: Annotated[list[Width], Field(min_length=1, max_length=100), AfterValidator(unique)] = Field(
        [1.0], description="Multipliers of every hidden width; the paper has 1 to 16."
    )
    options: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        description="Keyword arguments of the network's own, such as {depth: 6, heads: 3} of vit or {asymmetric: true} of "
        "mlp, resnet20 and vgg11; for torchvision's, timm's and custom networks those of what builds them.",
    )
    init: Literal["own", "torch"] = Field(
        "own",
        description="Initialisation: own, the network's (He normal in those of this package), or torch's default of every "
        "convolution and linear layer (the published code's VGG-11).",
    )
