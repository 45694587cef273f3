"""A publish amid a recursion that leaves no room for its calls, nor for those that would clean up.

The program goes on, and later calls on the connection must not take the replies of others for theirs.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent

from greenconn import Connection, Producer
from greenconn.exceptions import EncodeError
from tests.fix_wires import until

LIMIT = 400
#: Frames that a publish has, at most: with more there is room for all of it.
MOST_FRAMES = 32
SOON = 30.0


@contextmanager
def low_limit() -> Iterator[None]:
    before = sys.getrecursionlimit()
    # What is collected has no room for its callbacks, either.
    gc.disable()
    sys.setrecursionlimit(LIMIT)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
        gc.enable()


def room(depth: int = 0) -> int:
    """Return how many calls there is room for."""
    try:
        return room(depth + 1)
    except RecursionError:
        return depth


def with_room(frames: int, call: Callable[[], Any]) -> bool:
    """Call where so many frames are left; return whether there was room for it."""
    has_ended = False

    def descend(depth: int) -> None:
        nonlocal has_ended
        if depth:
            descend(depth - 1)
        else:
            call()
            has_ended = True

    def run() -> None:
        with suppress(RecursionError, EncodeError):
            descend(room() - frames)

    with low_limit():
        greenlet = gevent.spawn(run)
        greenlet.get(timeout=SOON)
    return has_ended


def test_publishes_behind_one_that_had_no_room(kind_url: str, unique: str) -> None:
    connection = Connection(kind_url)
    queue = connection.SimpleQueue(unique)
    producer = connection.Producer()
    producer.publish(0, routing_key=unique)
    stored, errors = 1, []
    for frames in range(1, MOST_FRAMES):
        stored += with_room(frames, lambda: Producer(connection).publish(1, routing_key=unique))
        for _ in range(2):
            try:
                producer.publish(2, routing_key=unique)
                stored += 1
            except connection.connection_errors as exc:
                errors.append(str(exc))
    # None has waited for a reply that another took.
    assert not any("did not reply" in each for each in errors)
    assert stored > MOST_FRAMES
    until(lambda: queue.qsize() >= stored)
    connection.release()
