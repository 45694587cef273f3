"""Who is taken for dead, or had no answer: each message is somebody's or nobody's, and stays whole."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenconn.broker.port import Settlement, SettleRequest
from greenconn.broker.queues import Declaration
from greenconn.transport import couchdb as module
from greenconn.transport.couchdb import CouchStore, Transport
from greenconn.transport.couchdb.api import CouchApi, Document, released
from tests.fix_wires import until
from tests.integration.couchdb_clients import SOON, bodies, entry, raw_to, store_at
from tests.tiny_client import TinyClient
from tests.unit.broker.sink import Sink
from tests.unit.broker.test_publishing import publish

pytestmark = pytest.mark.full

PLAIN = Declaration()
#: Options of a link that falls silent.
SILENT: dict[str, Any] = {"lease": 0.3}


@pytest.fixture
def sweep_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sweeps begins at once."""
    monkeypatch.setattr(module, "SWEEP_DELAY", 0.0)


class Gate:
    """Holds back the writes of one store that a test wants to be late, before they are sent."""

    def __init__(self, store: CouchStore, is_meant: Callable[[Document], bool]) -> None:
        self._write, self._is_meant = store._api.write, is_meant
        self.waits, self.opened = Event(), Event()
        store._api.write = self._late  # type: ignore[method-assign]

    def _late(self, docs: Sequence[Document], **options: Any) -> list[Document]:
        if any(map(self._is_meant, docs)):
            self.waits.set()
            assert self.opened.wait(6 * SOON)
        return self._write(docs, **options)


def swept(store: CouchStore) -> None:
    """Let *store* sweep until it has given something back."""
    until(store._owners.sweep)


@pytest.mark.usefixtures("sweep_at_once")
def test_who_was_taken_for_dead_claims_in_a_new_name(couchdb_new_url: str) -> None:
    """A process that was stopped: what it claims when it goes on is its own."""
    with store_at(couchdb_new_url, **SILENT) as silent, store_at(couchdb_new_url) as other:
        silent.make_queue("q", PLAIN)
        silent.put([entry("q", "a")])
        [held] = silent.claim({"q": 1}, 0)
        swept(other)
        [again] = silent.claim({"q": 1}, 0)
        assert silent.renew([held.handle, again.handle]) == [held.handle]
        silent.settle([SettleRequest(again, Settlement.ACK)])
        assert silent.size("q") == 0


@pytest.mark.usefixtures("sweep_at_once")
def test_who_comes_too_late_to_sweep_changes_nothing(couchdb_new_url: str) -> None:
    """pouchdb-server ends when a revision comes once more after its document has gone."""
    with (
        store_at(couchdb_new_url, **SILENT) as silent,
        store_at(couchdb_new_url) as one,
        store_at(couchdb_new_url) as two,
        raw_to(couchdb_new_url) as raw,
    ):
        silent.make_queue("q", PLAIN)
        silent.put([entry("q", f"{n}") for n in range(3)])
        assert len(silent.claim({"q": 3}, 0)) == 3
        late = Gate(one, lambda doc: "swept" in doc)

        def sweep() -> None:
            while not late.waits.is_set():
                one._owners.sweep()
                gevent.sleep(0.01)

        sweeping = gevent.spawn(sweep)
        assert late.waits.wait(SOON)
        swept(two)
        assert len(raw.docs("gco!")) == 2
        late.opened.set()
        sweeping.get(timeout=SOON)
        assert len(raw.docs("gco!")) == 2
        assert bodies(two.claim({"q": 9}, 0)) == ["0", "1", "2"]


@pytest.mark.usefixtures("sweep_at_once")
def test_who_requeues_what_was_requeued_changes_nothing(couchdb_new_url: str) -> None:
    with store_at(couchdb_new_url, **SILENT) as silent, store_at(couchdb_new_url) as other:
        silent.make_queue("q", PLAIN)
        silent.put([entry("q", "x")])
        (claimed,) = silent.claim({"q": 1}, 0)
        late = Gate(silent, lambda doc: "freed" in doc)
        back = gevent.spawn(silent.settle, [SettleRequest(claimed, Settlement.REQUEUE)])
        assert late.waits.wait(SOON)
        swept(other)
        (again,) = other.claim({"q": 1}, 0)
        other.settle([SettleRequest(again, Settlement.ACK)])
        late.opened.set()
        back.get(timeout=SOON)
        assert other.claim({"q": 1}, 0) == []


def test_one_sweeps_for_all(couchdb_new_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        store_at(couchdb_new_url, **SILENT) as silent,
        store_at(couchdb_new_url) as one,
        store_at(couchdb_new_url) as two,
        store_at(couchdb_new_url, **SILENT) as other,
    ):
        silent.make_queue("q", PLAIN)
        silent.put([entry("q", f"{n}") for n in range(2)])
        for store in (silent, other):
            assert len(store.claim({"q": 1}, 0)) == 1
        until(lambda: len(two._owners._silent()) == 2)
        until(lambda: len(one._owners._silent()) == 2)
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 1:
                assert one._owners.sweep() == 2
                until(lambda: not two._owners._silent())

        monkeypatch.setattr(module, "sleep", wait)
        writes = Gate(two, lambda doc: True)
        assert two._owners.sweep() == 0
        assert len(waits) == 2
        assert max(waits) <= 30.0 / 6
        assert not writes.waits.is_set()
        writes.opened.set()


@pytest.mark.usefixtures("sweep_at_once")
def test_what_the_dead_claim_late_is_requeued(couchdb_new_url: str) -> None:
    with (
        store_at(couchdb_new_url, **SILENT) as silent,
        store_at(couchdb_new_url) as other,
        raw_to(couchdb_new_url) as raw,
    ):
        silent.make_queue("q", PLAIN)
        silent.put([entry("q", "x")])
        late = Gate(silent, lambda doc: "owner" in doc)
        claiming = gevent.spawn(silent.claim, {"q": 1}, 0)
        assert late.waits.wait(SOON)

        def is_gone() -> bool:
            other._owners.sweep()
            return len(raw.docs("gco!")) == 1

        until(is_gone)
        late.opened.set()
        (claimed,) = claiming.get(timeout=SOON)
        assert other.size("q") == 0
        until(lambda: silent._owners.is_due)
        assert list(silent.renew([claimed.handle])) == [claimed.handle]
        assert other.size("q") == 1
        silent.settle([SettleRequest(claimed, Settlement.ACK)])
        assert bodies(other.claim({"q": 1}, 0)) == ["x"]


@pytest.mark.parametrize("how", ["cut", "killed"])
def test_a_claim_without_an_answer_is_requeued_by_the_next_life(
    couchdb_new_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    landed, never, write = Event(), Event(), CouchApi.write

    def unanswered(self: CouchApi, docs: Sequence[Document], **options: Any) -> list[Document]:
        results = write(self, docs, **options)
        if any("owner" in doc for doc in docs) and not landed.is_set():
            landed.set()
            if how == "cut":
                raise ConnectionResetError(errno.ECONNRESET, "cut")
            never.wait()
        return results

    monkeypatch.setattr(CouchApi, "write", unanswered)
    transport = Transport(TinyClient(couchdb_new_url, lease=1000.0))
    link = transport.establish_connection()
    channel = transport.create_channel(link)
    channel.queue_declare("q")
    for number in range(3):
        publish(channel, f"{number}")
    channel.basic_consume("q", sink=Sink())
    assert landed.wait(SOON)
    if how == "killed":
        link.end(ConnectionResetError(errno.ECONNRESET, "cut"))
    until(lambda: link.lost is not None)
    successor = transport.establish_connection()
    try:
        channel = transport.create_channel(successor)
        got = [channel.basic_get("q") for _ in range(4)]
        assert [each and (each.body, each.delivery_info["redelivered"]) for each in got] == [
            *((f"{number}", False) for number in range(3)),
            None,
        ]
        for each in got:
            if each is not None:
                each.ack()
    finally:
        successor.close()


def test_what_was_stored_again_after_it_had_gone_is_whole() -> None:
    """A proxy may repeat a request whenever it likes: then its revision is even, as if it were held."""
    doc = {"_id": "gcz!q!255!1!a", "_rev": "4-x", "queue": "q", "payload": "{}"}
    assert released(doc, "me")["payload"] == "{}"
