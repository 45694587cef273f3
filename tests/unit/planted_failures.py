"""Tests that fail, for ``test_runner``."""

from __future__ import annotations

import logging

import pytest


def fail() -> None:
    """Fail below the test."""
    logging.getLogger(__name__).info("about to break")
    pytest.fail("broken")


def test_that_is_broken() -> None:
    """Never passes."""
    fail()


@pytest.mark.parametrize("number", [1, 2])
def test_that_is_skipped(number: int) -> None:
    """Is skipped, for one reason."""
    pytest.skip("planted reason")
