"""Tests that fail, for ``test_runner``: always, or the first time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

WHERE = "GREENCONN_TEST_PLANTED_ACCIDENTS"


def test_that_fails_once() -> None:
    """Passes from the second run on."""
    ran = Path(os.environ[WHERE], "ran")
    if not ran.exists():
        ran.touch()
        pytest.fail("the machine stopped for a while")


@pytest.mark.parametrize("number", range(4))
def test_that_is_broken(number: int) -> None:
    """Never passes."""
    pytest.fail(f"{number} is broken")
