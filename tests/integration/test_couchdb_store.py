"""The store over a real server: documents, claims by revision, leases, expiry."""

from __future__ import annotations

import json
from typing import Any

import gevent
import pytest
from gevent import socket

import greenconn
from greenconn import Connection
from greenconn.exceptions import AccessRefused, OperationalError, PublishRefused
from greenconn.green.deadline import Deadline
from greenconn.transport.couchdb import CouchStore, api
from tests.brokers.tls import CERTS
from tests.fix_couchdb import CouchFactory
from tests.fix_interrupts import interruptions
from tests.fix_peer import PeerFactory
from tests.fix_tls import TlsFront
from tests.fix_wires import until
from tests.integration.couchdb_clients import (
    PLAIN,
    SOON,
    back,
    bodies,
    done,
    entry,
    put,
    raw_to,
    store_at,
)


def test_what_is_reported_by_the_feed_is_found(couchdb_new_url: str) -> None:
    woken: list[str | None] = []
    with store_at(couchdb_new_url) as one, store_at(couchdb_new_url, woken.append) as other:
        one.make_queue("q", PLAIN)
        put(one, entry("q", "0"))
        (claimed,) = other.claim({"q": 9, "none": 9}, 0)
        for number, options in enumerate(({}, {"priority": 5})):
            woken.clear()
            put(one, entry("q", "new", **options))
            until(lambda: woken)
            # Two queues: it relies on what it knows.
            assert bodies(other.claim({"q": 9, "none": 9}, 0)) == ["new"], number
        other.settle([back(claimed)])
        assert bodies(other.claim({"q": 9, "none": 9}, 0)) == ["0"]


def test_an_interrupted_claim_hides_nothing(couchdb_new_url: str) -> None:
    with store_at(couchdb_new_url) as store, raw_to(couchdb_new_url) as raw:
        store.make_queue("q", PLAIN)
        put(store, *(entry("q", f"{n}") for n in range(3)))
        for run in interruptions(lambda: store.claim({"q": 9, "none": 9}, 0), delays=(0, 3)):
            # What was claimed by a request whose answer nobody read is the dead link's to give back.
            taken = list(run.result or ())

            def is_each_found(taken: list[Any] = taken) -> bool:
                # A claim may begin before the link knows of the latest change.
                taken += store.claim({"q": 9, "none": 9}, 0)
                held = {doc["_id"] for doc in raw.docs("gcz!") if "owner" in doc}
                return len(taken) + len(held - {each.handle[0] for each in taken}) == 3

            until(is_each_found)
            store.settle([back(each, is_unseen=True) for each in taken])
            lost = [doc for doc in raw.docs("gcz!") if "owner" in doc]
            for doc in lost:
                del doc["owner"]
            raw.put(*lost)
            until(lambda: store.size("q") == 3)


@pytest.mark.full
def test_large_messages_are_read_in_smaller_pages(
    couchdb_new_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "LARGEST", 300_000)
    with store_at(couchdb_new_url) as store:
        store.make_queue("q", PLAIN)
        for number in range(8):
            put(store, entry("q", f"{number}" * 100_000))
        assert [body[0] for body in bodies(store.claim({"q": 9}, 0))] == list("01234567")


# -- signs of life


@pytest.mark.full
def test_who_falls_silent_is_swept_once(couchdb_new_url: str) -> None:
    options: dict[str, Any] = {"lease": 6.0, "feed_heartbeat": 1.0}
    with (
        store_at(couchdb_new_url, **options) as one,
        store_at(couchdb_new_url, **options) as two,
        store_at(couchdb_new_url, lease=0.5) as silent,
        raw_to(couchdb_new_url) as raw,
    ):
        silent.make_queue("q", PLAIN)
        put(silent, *(entry("q", f"{n}") for n in range(4)))
        held = list(silent.claim({"q": 2}, 0))
        (living,) = one.claim({"q": 1}, 0)

        def beat(store: CouchStore) -> None:
            while True:
                assert list(store.renew([])) == []
                gevent.sleep(0.1)

        beats = [gevent.spawn(beat, store) for store in (one, two)]
        until(lambda: one.size("q") == 3)
        assert bodies(two.claim({"q": 9}, 0)) == ["0", "1", "3"]
        until(lambda: len(raw.docs("gco!")) == 2)
        # It comes back to life: what it held is lost, and it may go on.
        assert list(silent.renew([each.handle for each in held])) == [each.handle for each in held]
        silent.settle([done(each) for each in held])
        put(silent, entry("q", "new"))
        (mine,) = silent.claim({"q": 1}, 0)
        assert bodies([mine]) == ["new"]
        assert list(silent.renew([mine.handle])) == []
        assert list(one.renew([living.handle])) == []
        gevent.killall(beats)


@pytest.mark.full
def test_the_time_without_answers_does_not_count(couchdb_new_url: str) -> None:
    options: dict[str, Any] = {"lease": 0.5}
    with store_at(couchdb_new_url, **options) as one, store_at(couchdb_new_url, **options) as two:
        one.make_queue("q", PLAIN)
        put(one, entry("q", "x"))
        (held,) = one.claim({"q": 1}, 0)
        until(lambda: len(two._owners._seen) == 1)
        gevent.sleep(0.8)  # neither renews: this process could have been stopped
        assert list(two.renew([])) == []
        assert list(one.renew([held.handle])) == []
        assert two.size("q") == 0


# -- connections


@pytest.mark.programs
def test_logins(couchdb_with: CouchFactory) -> None:
    server = couchdb_with(login=("me", "se:cr/et"))
    url = f"couchdb://me:se%3Acr%2Fet@127.0.0.1:{server.port}/db"
    with Connection(url) as connection:
        greenconn.publish("q", "x", connection=connection, declare=True)
        with connection.SimpleQueue("q") as queue:
            assert queue.get(timeout=SOON).payload == "x"
        assert "se" not in repr(connection)


@pytest.mark.full
def test_over_tls(couchdb_new_url: str, tls_front: TlsFront) -> None:
    parts = Connection(couchdb_new_url)
    port = tls_front((str(parts.hostname), int(parts.port or 0)))
    ssl = {"ca_certs": str(CERTS / "ca.pem")}
    database = couchdb_new_url.rpartition("/")[2]
    for url in (
        f"couchdb://localhost:{port}/{database}",
        f"couchdb+https://localhost:{port}/{database}",
    ):
        with Connection(url, ssl=ssl) as connection:
            greenconn.publish("q", "x", connection=connection, declare=True)
            with connection.SimpleQueue("q") as queue:
                message = queue.get(timeout=SOON)
                assert message.payload == "x"
                message.ack()
    with (
        Connection(f"couchdb+https://localhost:{port}/{database}") as connection,
        pytest.raises(OperationalError, match="certificate"),
    ):
        connection.ensure_connection(max_retries=1, interval_start=0)


@pytest.mark.full
def test_a_message_that_is_too_large_affects_no_other(
    couchdb_new_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_at(couchdb_new_url) as store:
        store.make_queue("q", PLAIN)
        request = store._web.request

        def limited(method: str, target: str, **options: Any) -> Any:
            if len(options.get("body", b"")) > 10_000:
                reply = request("GET", "/", deadline=Deadline(SOON))
                return reply._replace(status=413, body=b'{"error":"too_large"}')
            return request(method, target, **options)

        monkeypatch.setattr(store._web, "request", limited)
        outcomes = store.put([entry("q", "a"), entry("q", "b" * 20_000), entry("q", "c")])
        assert isinstance(outcomes[1], PublishRefused)
        assert "max_document_size" in str(outcomes[1])
        assert (outcomes[0], outcomes[2]) == (None, None)
        assert bodies(store.claim({"q": 5}, 0)) == ["a", "c"]


@pytest.mark.parametrize(
    ("status", "error"), [(401, "unauthorized"), (403, "forbidden")], ids=["login", "right"]
)
def test_a_refused_login_is_not_tried_again(peer: PeerFactory, status: int, error: str) -> None:
    def serve(client: socket.socket) -> None:
        while client.recv(65536):
            body = json.dumps({"error": error, "reason": "no"}).encode()
            head = f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)

    server = peer(serve)
    with Connection(f"couchdb://me:secret@127.0.0.1:{server.port}/db") as connection:
        with pytest.raises(AccessRefused, match=error) as caught:
            connection.ensure_connection(max_retries=3, interval_start=0)
        assert "secret" not in str(caught.value)
        assert server.accepted == 1
