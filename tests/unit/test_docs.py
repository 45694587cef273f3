"""Every code block of the README and the documentation runs."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest

from tests.interpreter import printed

ROOT = Path(__file__).resolve().parents[2]
#: Run on a broker, in the integration tests.
ELSEWHERE = {
    *("recipes.rst", "other-brokers.rst", "rabbitmq.rst", "redis.rst", "postgresql.rst"),
}
TEXTS = [
    ROOT / "README.rst",
    *(each for each in sorted((ROOT / "docs").glob("*.rst")) if each.name not in ELSEWHERE),
]
_BLOCK = re.compile(r"^\.\. code(?:-block)?:: python\n\n((?:(?:    .*)?\n)+)", re.MULTILINE)


def blocks(text: str) -> str:
    """All Python blocks of a text, one after the other: later ones build on earlier ones."""
    return "\n".join(
        re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in _BLOCK.findall(text)
    )


def section(text: str, title: str) -> str:
    """The section of a page that has that title, up to the next one of its rank."""
    found = re.search(rf"^{title}\n(=+\n(?:.*\n(?!=+\n))*)", text, re.MULTILINE)
    assert found is not None, title
    return found[1]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
@pytest.mark.sampled(8)
def test_the_code_blocks_run(path: Path, patched: bool) -> None:
    program = blocks(path.read_text())
    if not program:
        assert path.name not in ("README.rst", "guide.rst")
        return
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    printed("-W", "error", "-c", prefix + program, env={"GREENCONN_URL": "memory://"})


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))],
    ids=lambda path: path.name,
)
def test_programs_fit_the_page(path: Path) -> None:
    lines = blocks(path.read_text()).splitlines()
    assert [line for line in lines if len(line) > COLUMNS] == []


#: Columns of a program that no page cuts.
COLUMNS = 88
#: What RabbitMQ, SQLite, OpenSSL and gevent say of the messages that the page of troubles quotes.
NOT_OURS = (
    "Connection refused",
    "certificate verify failed",
    "ACCESS_REFUSED",
    "NOT_ALLOWED",
    "This operation would block",
    "only available on the default loop",
    "disk I/O error",
    "database or disk is full",
    "file is not a database",
)
_FILLED_IN = re.compile(r"'[^']*'|\d[\d.:]*|[():]|mail|pymongo|application/json")
_QUOTED = re.compile(r"^``(.+)``$", re.MULTILINE)


def test_the_messages_that_are_explained_exist() -> None:
    sources = [each.read_text() for each in sorted((ROOT / "greenconn").rglob("*.py"))]
    # Texts that are continued in the next line are one text.
    everything = re.sub(r'"\s+f?"', "", "\n".join(sources))
    for quoted in _QUOTED.findall((ROOT / "docs" / "troubleshooting.rst").read_text()):
        if any(words in quoted for words in NOT_OURS):
            continue
        pieces = [each.strip() for each in _FILLED_IN.split(quoted)]
        assert any(len(each) > 7 and each in everything for each in pieces), quoted


_LINK = re.compile(r"<([^<>\s:]+)>`_|^\.\. image:: (\S+)$", re.MULTILINE)


@pytest.mark.parametrize(
    "path",
    [
        *(ROOT / name for name in ("README.rst", "CHANGES.rst", "CONTRIBUTING.rst")),
        *sorted((ROOT / "docs").glob("*.rst")),
    ],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(path: Path) -> None:
    for link, image in _LINK.findall(path.read_text()):
        assert (path.parent / (link or image)).exists(), link or image


def test_links_of_the_package_page_are_absolute() -> None:
    described = runpy.run_path(str(ROOT / "setup.py"), run_name="setup_py")["described"]
    project = '[project.urls]\nDocumentation = "https://docs.test/green/"\nSource = "https://code.test/g"\n'
    readme = (ROOT / "README.rst").read_text()
    page = described(readme, project, "1.2.3")
    assert _LINK.findall(page) == [("", "https://docs.test/green/_static/overview.svg")]
    assert "<https://docs.test/green/guide.html>`_" in page
    assert "<https://code.test/g/blob/v1.2.3/CONTRIBUTING.rst>`_" in page
    addresses = len(re.findall("https://(?:docs|code)[.]test", page))
    assert addresses == len(_LINK.findall(readme))


PROGRAM = """\
import kombu
import kombu.utils as utils
    import kombu
from kombu import Connection  # kombu's
from kombu.pools import producers
import kombu.pools
from kombux import Queue
BROKER = "amqp://kombu@host/kombu"
queue = kombu.Queue("kombu")
"""
MOVED = """\
import greenconn as kombu
import greenconn.utils as utils
    import greenconn as kombu
from greenconn import Connection  # kombu's
from greenconn.pools import producers
import kombu.pools
from kombux import Queue
BROKER = "amqp://kombu@host/kombu"
queue = kombu.Queue("kombu")
"""


@pytest.mark.programs
def test_the_command_for_moving_touches_imports_only(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "moving.rst").read_text()
    found = re.search(r"^    (grep -rlE(?:.*\\\n)*.*)$", page, re.MULTILINE)
    assert found is not None
    source = tmp_path / "src" / "program.py"
    source.parent.mkdir()
    source.write_text(PROGRAM)
    subprocess.run(["bash", "-c", found[1]], cwd=tmp_path, check=True, timeout=30)
    assert source.read_text() == MOVED
