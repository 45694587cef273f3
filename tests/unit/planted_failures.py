"""Tests that fail, for ``test_runner``; as a plug-in of pytest, the quarantine of one of them."""

from __future__ import annotations

import logging

import pytest

from tests import quarantine


def pytest_configure() -> None:
    """Put one of the tests below into the quarantine.  pytest calls it with ``-p`` only."""
    quarantine.QUARANTINED["tests/unit/planted_failures.py::test_that_is_quarantined"] = "planted"


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


@pytest.mark.parametrize("is_broken", [True, False])
def test_that_is_quarantined(is_broken: bool) -> None:
    """Passes half of the time."""
    assert not is_broken
