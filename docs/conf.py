"""Sphinx makes a site of these pages: ``sphinx-build -W docs build/docs``.

They are written to be read as they are, too, so links between them name files; here these become pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from greenconn import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "greenconn"
author = "the greenconn authors"
copyright = f"2026, {author}"
version = release = __version__
html_theme = "alabaster"
html_theme_options = {"description": "kombu's API for gevent", "page_width": "1100px"}
html_show_sourcelink = False
highlight_language = "none"


def lead_to_pages(app: Sphinx, document: nodes.document) -> None:
    """Links to ``page.rst`` lead to the page; those to files beside these pages become plain text."""
    for link in list(document.findall(nodes.reference)):
        target = link.get("refuri", "")
        if "://" in target or not target:
            continue
        if target.startswith("../"):
            link.replace_self(link.children)
        elif target.endswith(".rst"):
            link["refuri"] = app.builder.get_target_uri(target.removesuffix(".rst"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", lead_to_pages)
    return {"parallel_read_safe": True}
