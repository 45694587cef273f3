"""A publish amid a recursion that leaves no room for its calls, nor for those that would clean up.

The program goes on, and later calls on the connection must not take the replies of others for theirs.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection, Producer
from greenconn.exceptions import EncodeError
from greenconn.green.hub import yield_to_hub
from tests.fix_wires import until

LIMIT = 400
#: Frames that a publish has, at most: with more there is room for all of it.
MOST_FRAMES = 32
SOON = 30.0
UNSENT = re.compile(
    r"(\d+) messages? that (?:was|were) published without confirm had not been sent"
)


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


@pytest.mark.parametrize("is_slow", [False, True])
def test_publishes_behind_one_that_had_no_room(
    kind_url: str, unique: str, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(kind_url)
    queue = connection.SimpleQueue(unique)
    producer = connection.Producer()
    producer.publish(0, routing_key=unique)
    published, errors = 1, []

    def publish() -> None:
        nonlocal published
        try:
            producer.publish(2, routing_key=unique)
            published += 1
        except connection.connection_errors as exc:
            errors.append(str(exc))

    for frames in range(1, MOST_FRAMES):
        publish()
        publish()  # which leaves at the end of the turn
        with monkeypatch.context() as patch:
            if is_slow:
                # So much time has gone by that it leaves at once.
                patch.setattr("greenconn.green.writer.PACE", 0.0)
            published += with_room(
                frames, lambda: Producer(connection).publish(1, routing_key=unique)
            )
        yield_to_hub()
    publish()
    publish()
    # None has waited for a reply that another took.
    assert not any("did not reply" in each for each in errors)
    assert published > MOST_FRAMES
    # What is missing was told.
    unsent = sum(int(found[1]) for each in errors if (found := UNSENT.search(each)))
    until(lambda: queue.qsize() >= published - unsent)
    connection.release()


def test_confirms_behind_a_publish_that_had_no_room(kind_url: str, unique: str) -> None:
    published: list[int] = []
    with Connection(kind_url) as connection:
        queue = connection.SimpleQueue(unique)

        def publish(number: int) -> None:
            greenconn.publish(unique, number, connection=connection)
            published.append(number)

        publish(0)
        for frames in range(1, MOST_FRAMES):
            with_room(frames, partial(publish, -frames))
            with gevent.Timeout(SOON):
                publish(frames)
        assert set(range(MOST_FRAMES)) <= set(published)
        until(lambda: queue.qsize() >= len(published))
        found = [queue.get(timeout=SOON) for _ in range(queue.qsize())]
        assert set(published) <= {message.payload for message in found}
        for message in found:
            message.ack()
