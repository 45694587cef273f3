"""Documents of kombu's in a CouchDB: what lies as kombu stored it is taken over."""

from __future__ import annotations

import json
from typing import Any

import gevent

from greenconn.transport.couchdb.store import CouchStore
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


def test_a_message_lies_as_kombu_stored_it(couchdb_new_url: str) -> None:
    with store_at(couchdb_new_url) as store, raw_to(couchdb_new_url) as raw:
        store.make_queue("a/b!c é", PLAIN)
        put(store, entry("a/b!c é", "x"))
        (doc,) = raw.docs("gcz!")
        assert doc["queue"] == "a/b!c é"
        assert json.loads(doc["payload"])["body"] == "x"
        (claimed,) = store.claim({"a/b!c é": 5}, 0)
        (doc,) = raw.docs("gcz!")
        assert "payload" not in doc, "kombu's consumers must not see what is held"
        assert claimed.deliveries == 0
        store.settle([back(claimed)])
        (doc,) = raw.docs("gcz!")
        assert json.loads(doc["payload"])["body"] == "x"
        (claimed,) = store.claim({"a/b!c é": 5}, 0)
        assert claimed.deliveries == 1
        store.settle([done(claimed)])
        assert raw.docs("gcz!") == []


def foreign(number: int, queue: str = "q") -> dict[str, Any]:
    """A message as kombu's transport stored it."""
    payload = {"body": f"{number}", "headers": {}, "properties": {"delivery_tag": f"{number}"}}
    return {"_id": f"{number:032x}", "queue": queue, "payload": json.dumps(payload)}


def test_what_kombu_stored_is_taken_over_once(couchdb_new_url: str) -> None:
    with store_at(couchdb_new_url) as first, raw_to(couchdb_new_url) as raw:
        first.make_queue("q", PLAIN)
        raw.put(*map(foreign, range(20)))
        raw.put({"_id": "f" * 32, "is": "something else"}, {"_id": "abc", "queue": "q"})
        woken: list[str | None] = []
        with store_at(couchdb_new_url, woken.append) as one, store_at(couchdb_new_url) as two:
            got: list[str] = []

            def claim(store: CouchStore) -> None:
                while taken := store.claim({"q": 3}, 0):
                    got.extend(bodies(taken))
                    store.settle([done(each) for each in taken])

            jobs = [gevent.spawn(claim, store) for store in (one, two)]
            gevent.joinall(jobs, 3 * SOON, raise_error=True)
            woken.clear()
            raw.put(foreign(20))
            until(lambda: "q" in woken or None in woken)
            claim(one)
        assert sorted(map(int, got)) == list(range(21))
        kept = [doc["_id"] for doc in raw.docs() if not doc["_id"].startswith("gc")]
        assert kept == ["abc", "f" * 32]


def test_what_somebody_began_to_take_over_is_not_lost(couchdb_new_url: str) -> None:
    with store_at(couchdb_new_url) as living, raw_to(couchdb_new_url) as raw:
        living.make_queue("q", PLAIN)
        docs = [foreign(1), foreign(2)]
        for doc, owner in zip(docs, ("dead", living._owners.token), strict=True):
            doc.update(held=doc.pop("payload"), owner=owner)
        raw.put(*docs)
        with store_at(couchdb_new_url) as later:
            assert bodies(later.claim({"q": 9}, 0)) == ["1"]
