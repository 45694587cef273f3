"""Every transport has what the protocols ask for: mypy says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 170.0


def complaints(source: Path) -> str:
    """Return the errors that mypy finds in a module."""
    pytest.importorskip("mypy", reason="mypy is not installed; the linters check this, too")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "setup.cfg", str(source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return "".join(line + "\n" for line in done.stdout.splitlines() if ": error: " in line)


def test_every_transport_conforms_to_the_protocols() -> None:
    assert complaints(ROOT / "tests" / "conformance.py") == ""


def test_a_channel_that_lacks_a_method_does_not_conform(tmp_path: Path) -> None:
    source = tmp_path / "planted.py"
    source.write_text(
        "from greenconn import abc\n"
        "class Channel:\n"
        "    def close(self) -> None: ...\n"
        "def conforms(channel: Channel) -> abc.Channel:\n"
        "    return channel\n"
    )
    assert "Incompatible return value type" in complaints(source)
