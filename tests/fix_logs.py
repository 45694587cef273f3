"""Logs: a handler that waits, as one may that writes to the network, and silence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gevent.event import Event


class WaitingHandler(logging.Handler):
    """Waits at the first record with *text*.

    Attributes:
        has_come: set when the record has come.
        may_go_on: set when the handler may return.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.has_come = Event()
        self.may_go_on = Event()

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of the handler, which would hold up what others log, too.
        if self._text in record.getMessage() and not self.has_come.is_set():
            self.has_come.set()
            self.may_go_on.wait()
        return True


@contextmanager
def waiting_log(name: str, text: str) -> Iterator[WaitingHandler]:
    """Add a :class:`WaitingHandler` to the logger *name*, at the level DEBUG."""
    logger, handler = logging.getLogger(name), WaitingHandler(text)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        handler.may_go_on.set()
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def quiet() -> Iterator[None]:
    """The library says nothing: what goes wrong does so on purpose."""
    logger = logging.getLogger("greenconn")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
