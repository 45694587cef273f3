"""The texts that users read outside of the manual."""

from __future__ import annotations

import re
from pathlib import Path

import docutils.core
import pytest
from docutils import nodes

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parent.parent.parent
CHANGELOG = ROOT / "changelog"
FRAGMENT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.(feature|bugfix|removal|doc)\.rst")
TEXTS = [ROOT / "README.rst", ROOT / "CHANGES.rst", *CHANGELOG.glob("*.rst")]
PAGES = [ROOT / "README.rst", ROOT / "tests" / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
#: docutils' number of a warning, and of what it cannot go on after.
WARNING = 2
SEVERE = 5


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_it_is_correct_restructured_text(text: Path) -> None:
    docutils.core.publish_doctree(
        text.read_text(encoding="utf-8"),
        source_path=str(text),
        settings_overrides={"halt_level": WARNING, "report_level": WARNING},
    )


def test_fragments_of_the_change_log_have_proper_names() -> None:
    names = {file.name for file in CHANGELOG.iterdir()} - {"README.rst"}
    assert {name for name in names if not FRAGMENT.fullmatch(name)} == set()


@pytest.mark.parametrize("program", ["greenconn demo", "tests"])
def test_the_readme_has_one_command_for(program: str) -> None:
    # The checks of a change run what this finds.
    command = rf"^ *python3 -m venv \.venv && (?:.*\\\n)?.* && \.venv/bin/python -m {program}$"
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    assert len(re.findall(command, text, re.MULTILINE)) == 1


def is_torn(cell: str) -> bool:
    """Whether the text goes on in the next row, or began in the one before."""
    cell = cell.strip()
    return not cell or cell.endswith(",") or cell.count("(") != cell.count(")")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_rows_of_tables_are_whole(page: Path) -> None:
    tree = docutils.core.publish_doctree(
        page.read_text(encoding="utf-8"),
        # Only Sphinx knows the directive that lists the pages.
        settings_overrides={"halt_level": SEVERE, "report_level": SEVERE},
    )
    rows = [row for body in tree.findall(nodes.tbody) for row in body.findall(nodes.row)]
    cells = [[cell.astext() for cell in row.findall(nodes.entry)] for row in rows]
    assert [row for row in cells if any(map(is_torn, row))] == []
