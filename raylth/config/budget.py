"""What a sweep may cost and what machines cost: settings that change no result."""

from pydantic import Field, model_validator

from raylth.config.types import Real, Settings

__all__ = ["BudgetConfig", "PricesConfig"]


class BudgetConfig(Settings):
    """What a sweep may use, over all its runs. Once it is used up no further stage is started, and running stages finish."""

    gpu_hours: Real | None = Field(None, gt=0, description="Hours of GPUs that the cluster holds while the sweep runs.")
    usd: Real | None = Field(None, gt=0, description="US dollars at the sweep's prices.")


class PricesConfig(Settings):
    """Cost of the cluster in US dollars, from the provider's price list for a region and date."""

    gpu_hour: Real = Field(0.0, ge=0, description="An hour of a machine with GPUs, divided by their number.")
    cpu_hour: Real = Field(0.0, ge=0, description="An hour of a machine without GPUs, divided by its cores.")
    hour: Real = Field(0.0, ge=0, description="Other costs per hour: a head that runs no stage, disks.")
    gb_month: Real = Field(0.0, ge=0, description="A gigabyte in the store for a month.")
    source: str | None = Field(None, min_length=1, description="Source of the prices, for readers of the file.")

    @model_validator(mode="after")
    def _says_something(self) -> "PricesConfig":
        if not any((self.gpu_hour, self.cpu_hour, self.hour, self.gb_month)):
            raise ValueError("no price is given: gpu_hour, cpu_hour, hour or gb_month")
        return self

    def per_hour(self, gpus: float, cpus: float) -> float:
        """Return what an hour costs with this many GPUs, and this many cores of machines without any."""
        return self.hour + gpus * self.gpu_hour + cpus * self.cpu_hour
