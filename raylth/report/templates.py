"""The HTML templates that the package carries."""

import importlib.resources

import jinja2

__all__ = ["template"]


def template(name: str) -> jinja2.Template:
    """Return a template of `raylth/report/`, by its file name."""
    loader = jinja2.FunctionLoader(_source)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def _source(name: str) -> str:
    return (importlib.resources.files("raylth.report") / name).read_text(encoding="utf-8")
