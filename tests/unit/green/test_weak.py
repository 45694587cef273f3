"""Callbacks that do not keep their owner alive."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from gevent import get_hub

from greenconn.green.hub import yield_to_hub
from greenconn.green.weak import call_in_hub, weakly


class Owner:
    """Has a method to be called."""

    def add(self, left: int, right: int) -> int:
        return left + right


def test_a_method_is_called_while_its_object_lives() -> None:
    owner = Owner()
    called = weakly(owner.add)
    assert called(2, 3) == 5
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None
    assert called(2, 3) is None


def test_a_function_stays_as_it_is() -> None:
    def function() -> int:
        return 1

    assert weakly(function) is function


def test_a_call_in_the_hub() -> None:
    called: list[tuple[int, ...]] = []
    assert call_in_hub(get_hub(), lambda *numbers: called.append(numbers), 1, 2)
    assert called == []
    yield_to_hub()
    assert called == [(1, 2)]


@pytest.mark.parametrize("why", ["no loop", "dead", "the end of the interpreter"])
def test_no_call_where_no_hub_is(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    loop = None if why == "no loop" else SimpleNamespace(run_callback_threadsafe=called.append)
    hub: Any = SimpleNamespace(loop=loop, dead=why == "dead")
    if why == "the end of the interpreter":
        monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    assert not call_in_hub(hub, called.append)
    assert called == []
