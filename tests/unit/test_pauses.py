"""The option that pauses each test fails those that rely on what happens within a moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLANTED = str(Path(__file__).resolve().parent / "planted_pauses.py")
pytestmark = pytest.mark.programs


@pytest.mark.full
def test_a_test_that_relies_on_time_is_found() -> None:
    """A planted test that asks for an event within a moment fails; one that waits for it does not."""
    program = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pauses", PLANTED]
    done = subprocess.run(program, capture_output=True, text=True, timeout=170, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stderr
    assert "test_relies_on_time" in done.stdout
    assert "at the hub's turns [" in done.stdout
