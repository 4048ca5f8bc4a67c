"""Sphinx: Markdown pages by MyST, the API from docstrings by autodoc."""

from __future__ import annotations

import re
from typing import Any

import packedbag

project = "packedbag"
author = "the packedbag authors"
copyright = author  # noqa: A001 - the name Sphinx reads
version = release = packedbag.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
default_role = "py:obj"
nitpicky = False

html_theme = "furo"
html_title = f"packedbag {release}"
html_static_path = ["_static"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings say it with shapes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_custom_sections = ["Shapes", "Source"]
napoleon_use_rtype = False

_LITERAL = re.compile(r"(``.+?``|`[^`]+`)")


def escape_markup(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Take a docstring for what it says: ``*`` and ``|`` are products, shapes and magnitudes, never markup.

    napoleon takes what stands before a colon in "Returns", and in a property's summary, for a type: there the
    colon becomes a dash.
    """
    for i, line in enumerate(lines):
        parts = _LITERAL.split(line)
        escaped = [part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts]
        if (what == "property" and i == 0) or (i and lines[i - 1].strip() == "Returns:"):
            escaped = [part if part.startswith("`") else part.replace(": ", " \N{EN DASH} ") for part in escaped]
        lines[i] = "".join(escaped)


def setup(app: Any) -> None:
    """Escape before napoleon reads the docstrings, and so before it adds markup of its own."""
    app.connect("autodoc-process-docstring", escape_markup, priority=100)
