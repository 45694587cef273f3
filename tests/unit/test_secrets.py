"""The search for secrets finds what is planted for it, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
PLANTED = FOLDER / "planted_secrets.py"
NAMES = re.findall(r"^def (test_\w+)", PLANTED.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def said() -> str:
    """What pytest says of the planted tests."""
    program = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA"]
    done = subprocess.run(
        [*program, str(PLANTED)],
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        timeout=150,
    )
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.full
def test_what_is_reported_is_found(said: str, name: str) -> None:
    fails = name.startswith("test_shows")
    if name.endswith("python_3_12"):
        fails = sys.version_info >= (3, 12)
    assert (f"ERROR tests/unit/planted_secrets.py::{name}" in said) is fails
    # The test itself has passed: it is what comes after it that finds the secret.
    assert f"PASSED tests/unit/planted_secrets.py::{name}" in said


def test_it_does_not_report_it_again(said: str) -> None:
    leaks = [line for line in said.splitlines() if "a secret was shown" in line]
    assert leaks
    after = said.partition("short test summary")[2]
    assert "correct horse" not in after
