"""The stored offset of a reader: when it is stored, and that nothing goes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.green.deadline import Deadline
from greenconn.streams import StreamPosition
from greenconn.worker.options import ConsumerOptions
from greenconn.worker.subscriptions import OffsetRecorder
from tests.fix_wires import until

NEVER = 3600.0


class Streamed:
    """A message of a stream, acknowledged."""

    def __init__(self, offset: int) -> None:
        self.headers = {"x-stream-offset": offset}
        self.acknowledged = True
        self._state = "ACK"


class Stored:
    """A store that keeps all offsets, and can be made to wait or fail."""

    def __init__(self, offset: int | None = None) -> None:
        self.first = offset
        self.offsets: list[int] = []
        self.may_store = Event()
        self.may_store.set()
        self.error: Exception | None = None

    def load(self, stream: str, reader: str) -> int | None:
        """Return what the test has said."""
        assert (stream, reader) == ("invoices", "billing")
        return self.first

    def store(self, stream: str, reader: str, offset: int) -> None:
        """Keep one more."""
        assert (stream, reader) == ("invoices", "billing")
        self.may_store.wait()
        if self.error is not None:
            raise self.error
        self.offsets.append(offset)


class Recording:
    """A recorder, and its reader."""

    def __init__(self, store: Stored, every: int = 10**6, interval: float = NEVER) -> None:
        self.position = StreamPosition("first")
        options = ConsumerOptions(
            queues=("invoices",),
            handler=lambda body, message: None,
            name="billing",
            offsets=store,
            store_every=every,
            store_interval=interval,
        )
        self.recorder = OffsetRecorder(options, "invoices", self.position)
        self.put = self.recorder.counting(self.position.watching(lambda message: None))
        self.recorder.load()

    def read(self, *offsets: int) -> None:
        """Receive and settle messages."""
        for offset in offsets:
            self.put(Streamed(offset))


@pytest.fixture
def store() -> Stored:
    return Stored()


@pytest.fixture
def recording(store: Stored) -> Iterator[Recording]:
    recording = Recording(store)
    yield recording
    recording.recorder.stop()


def test_it_is_stored_after_so_many_messages(store: Stored) -> None:
    recording = Recording(store, every=3)
    recording.read(0, 1)
    gevent.sleep(0)
    assert store.offsets == []
    recording.read(2)
    until(lambda: store.offsets == [3])
    recording.read(3, 4, 5)
    until(lambda: store.offsets == [3, 6])
    recording.recorder.stop()


def test_it_is_stored_after_so_many_seconds(store: Stored) -> None:
    recording = Recording(store, interval=0.01)
    recording.read(0, 1)
    until(lambda: store.offsets == [2])
    recording.read(2)
    until(lambda: store.offsets == [2, 3])
    recording.recorder.stop()


def test_only_what_is_settled_is_stored(store: Stored, recording: Recording) -> None:
    running = Streamed(3)
    running.acknowledged = False
    recording.read(0, 1, 2)
    recording.put(running)
    recording.read(4, 5)
    recording.recorder.finish(Deadline(30))
    assert store.offsets == [3]


def test_offsets_are_stored_in_their_order(store: Stored) -> None:
    recording = Recording(store, every=1)
    store.may_store.clear()
    recording.read(0)
    gevent.sleep(0)
    recording.read(1, 2)
    finishing = gevent.spawn(recording.recorder.finish, Deadline(30))
    gevent.sleep(0)
    store.may_store.set()
    finishing.get(timeout=30)
    assert store.offsets == [1, 3]


def test_a_store_that_hangs_holds_up_the_end_no_longer_than_said(store: Stored) -> None:
    recording = Recording(store)
    recording.read(0)
    store.may_store.clear()
    recording.recorder.finish(Deadline(1.0))
    store.may_store.set()
    until(lambda: store.offsets == [1])  # nothing has killed it


def test_a_store_that_fails_is_tried_again(store: Stored, caplog: pytest.LogCaptureFixture) -> None:
    recording = Recording(store, interval=0.01)
    store.error = OSError("no space left")
    recording.read(0)
    until(lambda: "no space left" in caplog.text)
    gevent.sleep(0.05)
    warnings: list[Any] = [each for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == 1
    store.error = None
    until(lambda: store.offsets == [1])
    recording.recorder.stop()
