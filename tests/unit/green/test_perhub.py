"""Values of which each hub has its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import gevent

from greenconn.green.perhub import PerHub


def in_thread(function: Callable[[], object]) -> None:
    """Call *function* in another thread, and wait."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_it_is_made_once_in_a_hub() -> None:
    lists: PerHub[list[int]] = PerHub(list)
    lists.get().append(1)
    assert lists.get() == [1]
    seen = gevent.spawn(lists.get).get()
    assert seen is lists.get()


def test_another_thread_has_its_own(patched: bool) -> None:
    lists: PerHub[list[int]] = PerHub(list)
    lists.get().append(1)
    seen: list[list[int]] = []
    in_thread(lambda: seen.append(lists.get()))
    # A thread of a patched process is a greenlet of the same hub.
    assert (seen[0] is lists.get()) is patched
    assert lists.get() == [1]


def test_what_is_taken_out_is_made_anew() -> None:
    lists: PerHub[list[int]] = PerHub(list)
    assert lists.pop() is None
    first = lists.get()
    assert lists.pop() is first
    assert lists.pop() is None
    assert lists.get() is not first


def test_another_hub_of_the_same_thread_has_its_own(patched: bool) -> None:
    lists: PerHub[list[int]] = PerHub(list)
    seen: list[bool] = []

    def two_hubs() -> None:
        first = lists.get()
        gevent.get_hub().destroy(destroy_loop=True)
        seen.append(lists.get() is first)
        lists.get()
        gevent.get_hub().destroy(destroy_loop=True)
        seen.append(lists.pop() is None)

    if not patched:  # there it would be the hub of the test
        in_thread(two_hubs)
        assert seen == [False, True]
