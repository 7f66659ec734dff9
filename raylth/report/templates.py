"""The HTML templates that the package carries."""

import importlib.resources

import jinja2

from raylth.report.labels import readable

__all__ = ["template"]


def template(name: str, package: str = "raylth.report") -> jinja2.Template:
    """Return a template that a package carries, by its file name; those that it includes are of the same package."""
    loader = jinja2.FunctionLoader(lambda file: (importlib.resources.files(package) / file).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["readable"] = readable
    return environment.get_template(name)
