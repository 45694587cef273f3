"""Sphinx makes a site of these pages: ``sphinx-build -W docs build/docs``.

They are written to be read as they are, too, so links between them name files; here these become pages.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

from greenconn import __version__
from setup import addresses

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "greenconn"
author = "the greenconn authors"
copyright = f"2026, {author}"
version = release = __version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "option_tables",
    "signatures",
]
autodoc_typehints_format = "short"
autodoc_member_order = "groupwise"
# Its names are in no signature that is shown.
autodoc_mock_imports = ["opentelemetry", "prometheus_client"]
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
# A name in an annotation may be that of the class and of its protocol: both are described.
suppress_warnings = ["ref.python"]
# Commands have two hyphens, and quotes that can be copied.
smartquotes = False
SOURCE = addresses((HERE.parent / "pyproject.toml").read_text("utf-8"), __version__)[1]
# Placeholders, and addresses of the reader's own machine.
linkcheck_ignore = [
    r"https?://([\w.]+\.)?example\.(org|com|net)",
    r"https?://(localhost|127\.0\.0\.1)",
]
linkcheck_timeout = 30
linkcheck_retries = 3
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_logo = html_favicon = "static/logo.svg"
html_title = f"greenconn {version}"
html_show_sourcelink = False
highlight_language = "none"


#: Pages for contributors, of which the search finds the titles only.
FOR_CONTRIBUTORS = {
    "architecture",
    "promises",
    "fault-tests",
    "measuring",
    "measured-load",
    "contributing",
    "changes",
}


def leave_out_of_search(app: Sphinx, document: nodes.document) -> None:
    """Leave the texts of the pages for contributors out of the search."""
    if app.env.docname in FOR_CONTRIBUTORS:
        app.env.metadata[app.env.docname]["nosearch"] = "true"


def make_reachable(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Let the keyboard scroll what is too wide for its place, and give captions of the menu a level."""
    for name, before, after in (
        ("body", '<div class="highlight"><pre>', '<div class="highlight"><pre tabindex="0">'),
        ("body", '<div class="table-wrapper', '<div tabindex="0" class="table-wrapper'),
        ("furo_navigation_tree", 'role="heading"', 'role="heading" aria-level="2"'),
    ):
        if isinstance(text := context.get(name), str):
            context[name] = text.replace(before, after)


def lead_to_pages(app: Sphinx, document: nodes.document) -> None:
    """Links to ``page.rst`` lead to the page; those to other files, to the source of this version."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(document.findall(nodes.reference)):
        target = link.get("refuri", "")
        if not target or "://" in target or target.startswith("mailto:"):
            continue
        page = target.removeprefix("docs/")  # as files beside the README name it
        if page.endswith(".rst") and not page.startswith("../") and (folder / page).is_file():
            link["refuri"] = app.builder.get_target_uri(page.removesuffix(".rst"))
        elif target.startswith("../") or not (folder / target).exists():
            link["refuri"] = f"{SOURCE}/{target.removeprefix('../')}"


def drop_contents(app: Sphinx, document: nodes.document) -> None:
    """Drop the list of a page's sections: the theme has one beside each page, and refuses another."""
    for topic in list(document.findall(nodes.topic)):
        if "contents" in topic["classes"]:
            topic.parent.remove(topic)
    for title in document.findall(nodes.title):
        title.attributes.pop("refid", None)  # it led back to that list


def set_dashes(app: Sphinx, document: nodes.document) -> None:
    """Set the dash after the name of an argument, which the rest of the text does not need."""
    for text in list(document.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", leave_out_of_search)
    app.connect("doctree-read", lead_to_pages)
    app.connect("doctree-read", drop_contents)
    app.connect("doctree-read", set_dashes)
    app.connect("html-page-context", make_reachable, priority=900)  # after the theme
    return {"parallel_read_safe": True}
