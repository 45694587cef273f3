"""The programs of docs/recipes.rst, each on several brokers: they print what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from greenconn import Connection

pytestmark = [pytest.mark.programs]

ROOT = Path(__file__).resolve().parents[2]
RECIPES = re.compile(
    r"^(?P<title>[A-Z][^\n]*)\n=+\n(?:(?!^\.\. code-block).*\n)*?"
    r"\.\. code-block:: python\n\n(?P<program>(?:(?:    .*)?\n)+)"
    r"It prints::\n\n(?P<output>(?:(?:    .*)?\n)+)",
    re.MULTILINE,
)
PAGE = (ROOT / "docs" / "recipes.rst").read_text()
PROGRAMS = {
    match["title"]: (dedent(match["program"]), dedent(match["output"]).strip())
    for match in RECIPES.finditer(PAGE)
}
#: The longest that a program may have, but for its empty lines.
LINES = 25


def test_all_programs_are_found() -> None:
    assert len(PROGRAMS) == PAGE.count(".. code-block:: python")


@pytest.mark.parametrize("title", PROGRAMS)
def test_programs_are_short(title: str) -> None:
    program, _ = PROGRAMS[title]
    assert len([line for line in program.splitlines() if line.strip()]) <= LINES


@pytest.mark.parametrize("kind", ["amqp", "redis", "sqlite", "memory"])
@pytest.mark.parametrize("title", PROGRAMS)
def test_programs_print_what_the_page_says(
    request: pytest.FixtureRequest, title: str, kind: str, tmp_path: Path
) -> None:
    if kind in ("amqp", "redis"):
        url = request.getfixturevalue(f"{kind}_url")
    else:
        url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/queue.db"
    program, output = PROGRAMS[title]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=150,
        cwd=ROOT,
        env={**os.environ, "GREENCONN_URL": url},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == output
    if kind in ("amqp", "redis"):
        with Connection(url) as connection:
            for name in re.findall(r'"([a-z-]+)"', program):
                connection.default_channel.queue_delete(name)
                connection.default_channel.queue_delete(f"{name}.dead")
