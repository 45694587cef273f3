"""Which handler had the hub: the longest of a time is named."""

from __future__ import annotations

from functools import partial
from gc import collect
from time import monotonic
from typing import Any
from weakref import ref

from greenconn.green import blocking_monitor
from greenconn.green.blocking_monitor import REMEMBERED, HandlerHistory, name_of


class Clock:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: Any) -> None:
        self.now = 0.0
        monkeypatch.setattr(blocking_monitor, "monotonic", lambda: self.now)


def first() -> None: ...


def second() -> None: ...


class Third:
    def handle(self) -> None: ...

    def __call__(self) -> None: ...


def test_the_handler_that_had_most_of_a_time_is_named(monkeypatch: Any) -> None:
    clock = Clock(monkeypatch)
    noted = HandlerHistory()
    assert noted.name_within(0.0, 100.0) is None
    for at, handler in ((1.0, first), (2.0, second), (7.0, first), (8.0, second)):
        clock.now = at
        noted.change(handler)
    assert noted.handler is second
    module = __name__
    assert noted.name_within(0.0, 2.0) == f"{module}.first"
    assert noted.name_within(1.5, 7.5) == f"{module}.second"
    assert noted.name_within(7.0, 8.2) == f"{module}.first"
    assert noted.name_within(7.0, 60.0) == f"{module}.second"  # until now
    assert noted.name_within(0.0, 0.5) is None


def test_what_is_remembered_is_bounded_and_keeps_no_handler_alive() -> None:
    noted = HandlerHistory()
    for _ in range(10 * REMEMBERED):
        noted.change(lambda: None)
    handler = Third()
    reference = ref(handler)
    noted.change(handler)
    noted.change(first)
    del handler
    collect()
    assert reference() is None
    assert str(noted.name_within(monotonic() - 60, monotonic())).startswith(__name__)
    assert len(noted._periods) == REMEMBERED


def test_names() -> None:
    module = __name__
    assert name_of(first) == f"{module}.first"
    assert name_of(Third().handle) == f"{module}.Third.handle"
    assert name_of(Third()) == f"{module}.Third"
    assert name_of(partial(second)) == f"{module}.second"
    assert name_of(partial(Third())) == f"{module}.Third"
    assert name_of(print) == "builtins.print"
