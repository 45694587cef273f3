"""What the runner makes of failures: it runs a few of them again, each alone, and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.planted_accidents import WHERE

pytestmark = pytest.mark.programs

ROOT = Path(__file__).resolve().parents[2]
PLANTED = "tests/unit/planted_accidents.py"
DEADLINE = 170.0


def run(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run planted tests; *state* is where they note that they ran."""
    return subprocess.run(
        [sys.executable, "-m", "tests", "--plain-only", *arguments],
        cwd=ROOT,
        env={**os.environ, WHERE: str(state), "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_a_failure_that_does_not_come_again_is_named(tmp_path: Path) -> None:
    """The run passes."""
    done = run(tmp_path, f"{PLANTED}::test_that_fails_once")
    assert done.returncode == 0, done.stdout
    assert "0 passed, 1 failed" in done.stdout
    assert "PASSED when run again, alone: plain: tests/unit/planted_accidents.py" in done.stdout


def test_a_failure_that_comes_again_is_one(tmp_path: Path) -> None:
    """Even beside one that does not."""
    done = run(tmp_path, f"{PLANTED}::test_that_fails_once", f"{PLANTED}::test_that_is_broken[0]")
    assert done.returncode == 1, done.stdout
    assert "PASSED when run again, alone: plain: tests/unit/planted_accidents.py" in done.stdout
    assert "FAILED again, alone: plain: tests/unit/planted_accidents.py" in done.stdout


def test_many_failures_are_no_accident(tmp_path: Path) -> None:
    """They are not run again, and none is where nobody wants it."""
    for arguments in ([PLANTED], ["--accidents", "0", f"{PLANTED}::test_that_fails_once"]):
        (tmp_path / "ran").unlink(missing_ok=True)
        done = run(tmp_path, *arguments)
        assert done.returncode == 1, done.stdout
        assert "alone" not in done.stdout
