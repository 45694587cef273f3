"""A database of CouchDB as a store of leased messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Final

from greenconn.broker.port import (
    Claimed,
    Entry,
    NoQueue,
    Settlement,
    SettleRequest,
    Store,
)
from greenconn.broker.topology import DirectTopology, Topology
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient
from greenconn.green.hub import weakly
from greenconn.green.retry import isolated
from greenconn.transport.couchdb.api import ChangesFeed, CouchApi, DocumentRefused, ServerRefuses
from greenconn.transport.couchdb.claiming import Claims, ClaimWriter, Expiry, mark_of
from greenconn.transport.couchdb.documents import (
    BINDING,
    EXCHANGE,
    MARK,
    MESSAGE,
    OWNER,
    QUEUE,
    SHARED_RANGE,
    Document,
    Handle,
    Writer,
    is_held_as,
    is_waiting,
    name_of,
    named,
    range_of,
    released,
)
from greenconn.transport.couchdb.options import CouchOptions
from greenconn.transport.couchdb.owners import Owners
from greenconn.transport.couchdb.topology import (
    CouchTopology,
    TopologyCache,
    deleted,
    queue_document,
    read_queue,
)
from greenconn.transport.virtual.declaration import Declaration

#: Kinds of documents that a link remembers.
PLACES: Final = frozenset({QUEUE, EXCHANGE, BINDING})


class CouchStore(Store):
    """One link to a database.

    Arguments:
        web: the server.
        database: its name.
        login: asked for user and password when it is opened; may switch.
    """

    put_bytes: ClassVar[int] = 1024 * 1024
    topology: Topology

    def __init__(
        self,
        client: Any,
        wake: Callable[[str | None], None],
        options: CouchOptions,
        web: HttpClient,
        database: str,
        login: Callable[[], tuple[str | None, str | None]],
    ) -> None:
        super().__init__(client, wake)
        self.lease = options.lease
        self._web = web
        self._login = login
        self._api = api = CouchApi(web, database, client.as_uri(), options.reply_timeout)
        self._writer = Writer()
        self._cache = TopologyCache.of(f"{web.where}/{database}")
        self.topology = DirectTopology(CouchTopology(api, self._cache))
        self._owners = Owners(api, options.lease, lambda: self.owner, self._drop_owned)
        self._claim_writer = ClaimWriter(api, lambda: self._owners.token)
        self._expiry = Expiry(api, self._claim_writer)
        self._claims = Claims(api, self._claim_writer, wake, self._expiry)
        self._feed = ChangesFeed(
            api,
            options.feed_heartbeat,
            weakly(self._changed),
            weakly(self._owners.note_gap),
            weakly(self._feed_lost),
        )

    # -- life

    def open(self, deadline: Deadline) -> None:
        """Connect, make the database if it is missing, and learn what is there."""
        self._api.log_in(*self._login())
        since = self._api.open(deadline)
        self._owners.begin()
        before, found = self._cache.revisions(), set()
        for page in self._api.all_rows(SHARED_RANGE, has_docs=True):
            for row in page:
                kind = row["id"].partition("!")[0]
                if kind == OWNER:
                    self._owners.note(row["id"], row["value"]["rev"], False)
                elif kind in PLACES:
                    self._cache.take(row["doc"])
                    found.add(row["id"])
        self._cache.keep(found, before)
        self._expiry.load()
        self._feed.start(since)

    def close(self) -> None:
        """Close in good order."""
        self._feed.stop()
        self._owners.end()
        self.drop()

    def drop(self) -> None:
        """Let go of everything at once.  Never switches."""
        self._feed.stop()
        self._claims.stop()
        self._web.close()

    def _feed_lost(self, exc: BaseException) -> None:
        self.lost(exc)

    def _changed(self, doc_id: str, revision: str, is_deleted: bool) -> None:
        """Handle a change of the feed.  Never switches."""
        kind = doc_id.partition("!")[0]
        if kind == MESSAGE:
            self._claims.note(doc_id, revision, is_deleted)
        elif kind == MARK:
            if not is_deleted:
                self._claims.note_mark(doc_id)
        elif kind == OWNER:
            self._owners.note(doc_id, revision, is_deleted)
        elif kind in PLACES:
            is_gone = self._cache.note(doc_id, revision, is_deleted)
            if is_gone and kind == QUEUE:
                name = name_of(doc_id)
                self._claims.forget(name)
                self.gone(name)

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        self._owners.has_queues |= declaration.owner is not None
        doc = queue_document(name, declaration)
        while True:
            revision = self._api.put(doc)
            if revision is not None:
                self._cache.take({**doc, "_rev": revision})
                return declaration
            found = self.find_queue(name)
            if found is not None:
                return found

    def find_queue(self, name: str) -> Declaration | None:
        doc = self._cache.fetch(self._api, named(QUEUE, name))
        return None if doc is None else read_queue(doc)

    def queue_names(self) -> Collection[str]:
        pages = self._api.all_rows(range_of(QUEUE))
        return [name_of(row["id"]) for page in pages for row in page]

    def _drop_owned(self, links: Collection[str]) -> None:
        """Delete the exclusive queues of links that are dead."""
        self._cache.refresh(self._api)
        for name, declared in list(self._cache.queues.items()):
            if declared.owner in links:
                self.drop_queue(name)

    def drop_queue(self, name: str) -> int:
        self._cache.refresh(self._api)
        doc_id = named(QUEUE, name)
        doc = self._api.get(doc_id)
        self._cache.remove(doc_id)
        if doc is not None:
            self._api.write([deleted(doc_id, doc["_rev"])])
        waiting = 0
        for page in self._api.all_rows(range_of(MESSAGE, name)):
            rows = [(row["id"], row["value"]["rev"]) for row in page]
            waiting += sum(is_waiting(revision) for _, revision in rows)
            self._api.write([deleted(*row) for row in rows])
        self._claims.forget(name)
        self.topology.forget_queue(name)
        return waiting

    def purge(self, name: str) -> int:
        count = 0
        for page in self._api.all_rows(range_of(MESSAGE, name)):
            rows = [(row["id"], row["value"]["rev"]) for row in page]
            dead = [deleted(*row) for row in rows if is_waiting(row[1])]
            if dead:
                count += sum("rev" in result for result in self._api.write(dead))
        return count

    def size(self, name: str) -> int:
        late = self._expiry.late()
        return sum(
            is_waiting(row["value"]["rev"]) and row["id"] not in late
            for page in self._api.all_rows(range_of(MESSAGE, name))
            for row in page
        )

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        there = {queue: self._is_there(queue) for queue in {entry.queue for entry in entries}}
        docs = [self._writer.document(entry) for entry in entries if there[entry.queue]]
        outcomes = iter(self._write(docs))
        return [next(outcomes) if there[entry.queue] else NoQueue(entry.queue) for entry in entries]

    def _is_there(self, queue: str) -> bool:
        return queue in self._cache.queues or self.find_queue(queue) is not None

    def _write(self, docs: Sequence[Document]) -> list[Exception | None]:
        if not docs:
            return []
        # One may be too large.
        parts = isolated(docs, self._write_together, _refused, _is_refusal)
        return [outcome for part in parts for outcome in part]

    def _write_together(self, docs: Sequence[Document]) -> list[Exception | None]:
        marks = [mark for doc in docs if (mark := mark_of(doc)) is not None]
        results = self._api.write([*docs, *marks])[: len(docs)]
        outcomes: list[Exception | None] = []
        for doc, result in zip(docs, results, strict=True):
            # A conflict is one with itself, as the ids of new messages are unique.
            if "rev" in result or result.get("error") == "conflict":
                self._claims.note(doc["_id"], result.get("rev", "1"), False)
                outcomes.append(None)
            else:
                text = f"{result.get('error')}: {result.get('reason')}"
                outcomes.append(DocumentRefused(f"{self._api.where}: {text}"))
        return outcomes

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        self._owners.wake_up()
        return self._claims.claim(wanted)

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        if any(request.entries for request in requests):
            # Before the messages go: two rather than none, if this process ends here.
            requests = [self._with_copies(each) if each.entries else each for each in requests]
        backs = {a.handle[0]: a for a in requests if a.settlement is Settlement.REQUEUE}
        docs = [
            deleted(request.handle[0], request.handle[1])
            for request in requests
            if request.settlement is not Settlement.REQUEUE
        ]
        if backs:
            for doc_id, doc in self._api.read(list(backs)).items():
                request = backs[doc_id]
                if is_held_as(doc, request.handle):
                    how = request.delay, request.is_unseen, request.is_unhandled
                    docs.append(released(doc, self._owners.token, *how))
        if docs:
            for doc, result in zip(docs, self._api.write(docs), strict=True):
                if "rev" in result and not doc.get("_deleted"):
                    self._claims.note(doc["_id"], result["rev"], False)

    def _with_copies(self, request: SettleRequest) -> SettleRequest:
        """Store the copies of a request; without them the message stays."""
        outcomes = self._write([self._writer.document(entry) for entry in request.entries])
        return self.unless_refused(request, outcomes)

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        if self._owners.is_due:
            self._owners.beat()
            self._owners.sweep()
        held: Sequence[Handle] = handles
        lost = [handle for handle in held if handle[2] != self._owners.token]
        if lost:
            # A claim that was under way came after the sweep: no sweep requeues its messages.
            self.settle([SettleRequest(handle, Settlement.REQUEUE) for handle in lost])
        return lost

    def unconfirmed_claims(self) -> Sequence[tuple[str, Any]]:
        return self._claim_writer.unconfirmed_claims()


def _refused(doc: Document, exc: Exception) -> list[Exception | None]:
    return [DocumentRefused(str(exc))]


def _is_refusal(exc: Exception) -> bool:
    return isinstance(exc, ServerRefuses)
