"""The cache that the links of a hub to one database share: late news, lost reads, what vanished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from greenconn.broker.queues import Declaration
from greenconn.transport.couchdb import TopologyCache, queue_document
from greenconn.transport.couchdb.api import CouchApi, Document, LinkLost

ID = "gcq!q"


def queue(revision: str, durable: bool = False) -> Document:
    return {**queue_document("q", Declaration(durable=durable)), "_rev": revision}


class Api:
    """A database that has some documents."""

    def __init__(self, *docs: Document) -> None:
        self.docs = {doc["_id"]: doc for doc in docs}
        self.is_lost = False

    def read(self, ids: Sequence[str]) -> dict[str, Document]:
        if self.is_lost:
            raise LinkLost("the server is away")
        return {doc_id: self.docs[doc_id] for doc_id in ids if doc_id in self.docs}


def refresh(cache: TopologyCache, api: Api) -> None:
    cache.refresh(cast(CouchApi, api))


def test_a_deletion_that_another_link_reports_late_changes_nothing() -> None:
    cache = TopologyCache()
    cache.take(queue("1-a"))
    assert cache.note(ID, "2-b", is_deleted=True)
    assert cache.note(ID, "2-b", is_deleted=True), "each link must learn that the queue is gone"
    assert not cache.note(ID, "3-c", is_deleted=False)
    assert not cache.note(ID, "2-b", is_deleted=True), "it was made again, and was not read yet"
    refresh(cache, Api(queue("3-c")))
    assert not cache.note(ID, "2-b", is_deleted=True)
    assert "q" in cache.queues


def test_what_a_lost_link_could_not_read_is_read_by_the_next() -> None:
    cache, api = TopologyCache(), Api(queue("1-a"))
    cache.note(ID, "1-a", is_deleted=False)
    api.is_lost = True
    with pytest.raises(LinkLost):
        refresh(cache, api)
    api.is_lost = False
    refresh(cache, api)
    assert "q" in cache.queues


def test_a_reply_from_before_a_change_leaves_the_change_unread() -> None:
    cache, api = TopologyCache(), Api(queue("1-a"))
    cache.note(ID, "1-a", is_deleted=False)
    cache.note(ID, "2-b", is_deleted=False)
    refresh(cache, api)
    api.docs[ID] = queue("2-b", durable=True)
    refresh(cache, api)
    assert cache.revision(ID) == "2-b"


def test_what_was_deleted_while_nobody_followed_is_removed() -> None:
    cache = TopologyCache()
    cache.take(queue("1-a"))
    before = cache.revisions()
    made = {**queue_document("made", Declaration()), "_rev": "1-x"}
    cache.take(made)  # by another link, while this one read
    cache.keep(set(), before)
    assert set(cache.queues) == {"made"}
