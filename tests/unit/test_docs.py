"""Every code block of the README and the documentation runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Run on a broker, in the integration tests.
ELSEWHERE = {"beanstalk.rst", "couchdb.rst", "rabbitmq.rst", "redis.rst", "mongodb.rst", "sqs.rst"}
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


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_the_code_blocks_run(path: Path, patched: bool) -> None:
    program = blocks(path.read_text())
    if not program:
        assert path.name not in ("README.rst", "guide.rst")
        return
    prefix = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", prefix + program],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=ROOT,
        env={**os.environ, "GREENCONN_URL": "memory://"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
