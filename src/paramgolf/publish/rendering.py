"""The Markdown pages of this package, rendered from `templates/`."""

from __future__ import annotations

import jinja2


def template(name: str) -> jinja2.Template:
    """Return a template, which fails at a value that it is not given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("paramgolf.publish"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
