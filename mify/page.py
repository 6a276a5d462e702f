"""Self-contained HTML pages: one style, templates of the package that asks, no file or address outside the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(package: str, template: str, **values: Any) -> str:
    """A page from a template beside the modules of `package`; what it names and was not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)
