"""Files that come with the package: sweep files, their schema and notebooks, in a wheel as in a checkout."""

from pathlib import Path

__all__ = ["SHIPPED", "shipped", "sweep_names"]

SHIPPED = ("sweeps", "notebooks")
PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: str) -> Path:
    """Return the path of a folder of `SHIPPED`: inside an installed package, beside that of a checkout.

    Raises FileNotFoundError where it is in neither.
    """
    for path in (PACKAGE / "shipped" / folder, PACKAGE.parent / folder):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"{folder} is neither in {PACKAGE / 'shipped'} nor beside {PACKAGE}: install the package anew")


def sweep_names() -> list[str]:
    """List the sweep files that come with the package, without their ending."""
    return sorted(path.stem for path in shipped("sweeps").glob("*.yaml"))
