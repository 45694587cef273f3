"""CouchDB, ``couchdb://host:5984/database``: a database as a store of leased messages.

All links of a hub to one database share one cache of its queues, exchanges and bindings: what one of
them changes all know at once, although the changes feed takes a moment.  Each link notes what its own
feed delivers, so the same news comes several times, and late.  The generation of a revision, which grows
over deletions too, tells what is newer.

Each link renews a document of its own, its heartbeat, and all check those of the others.  No clock is
compared with another.  A link measures by its own how long the heartbeat of another one has not changed;
time in which it could not hear anything does not count.  The one that finds another silent for its
lease marks its document, which only one can do, requeues what it held, deletes its exclusive queues,
and deletes the document.

Many links lose one server at the same time, and so do those that look for the dead find them at the same
time.  Each waits a little first, of a length of its own, and the first one does it for all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

from gevent import sleep
from gevent.lock import BoundedSemaphore

from greenconn._version import __version__
from greenconn.broker.channel import StoreChannel
from greenconn.broker.exchanges import (
    PREDECLARED,
    ExchangeRecord,
    Row,
    TopologyStore,
)
from greenconn.broker.link import StoreLink, StoreOptions, StoreTransport
from greenconn.broker.port import (
    Claimed,
    Entry,
    LeaseExpired,
    NoQueue,
    Settlement,
    SettleRequest,
    Store,
)
from greenconn.broker.queues import Declaration
from greenconn.checks import check_count, check_seconds, invalid
from greenconn.credentials import supplied
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient
from greenconn.green.hub import PerHub, weakly
from greenconn.green.retry import isolated
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.couchdb.api import (
    BINDING,
    EXCHANGE,
    MARK,
    MESSAGE,
    OWNER,
    QUEUE,
    SHARED_RANGE,
    ChangesFeed,
    CouchApi,
    Document,
    DocumentRefused,
    Handle,
    ServerRefuses,
    Writer,
    binding_id,
    deleted,
    generation,
    is_held_as,
    is_waiting,
    name_of,
    named,
    range_of,
    released,
)
from greenconn.transport.couchdb.claiming import Claims, mark_of
from greenconn.url import BrokerURL

__all__ = ["Channel", "CouchOptions", "Transport"]

#: Kombu's.
DEFAULT_DATABASE: Final = "kombu_default"

#: Kinds of documents that a link remembers.
PLACES: Final = frozenset({QUEUE, EXCHANGE, BINDING})

#: Documents that are read at once while messages are requeued; links that are swept at once.
BATCH: Final = 100
#: Parts of a lease that one waits at most for others to sweep.
SWEEP_DELAY: Final = 1 / 6


class CouchOptions(StoreOptions):
    """The options of a connection to CouchDB."""

    feed_heartbeat: float = 10.0
    """Seconds between heartbeats of the server in the changes feed; the connection is lost after
    three without data."""

    max_http_connections: int = 10
    """Maximum number of HTTP connections, without that of the changes feed."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_seconds(self, "feed_heartbeat", optional=False)
        check_count(self, "max_http_connections", least=1, optional=False)
        if self.feed_heartbeat < 0.1:
            raise invalid(self, "feed_heartbeat", "a number of seconds, at least 0.1")


class Channel(StoreChannel[StoreLink]):
    """A channel over CouchDB."""


class Transport(StoreTransport):
    """``couchdb://``: a document for each message; ``couchdb+https://``, or *ssl*, for TLS.

    ``transport_options`` are those of :class:`~greenconn.transport.couchdb.CouchOptions`.
    """

    Channel: ClassVar[type[StoreChannel[StoreLink]]] = Channel
    Options: ClassVar[type[StoreOptions]] = CouchOptions
    driver_type = "couchdb"
    driver_name = "greenconn"
    default_port = 5984
    inner_schemes = frozenset({"http", "https"})

    def make_store(self, wake: Callable[[str | None], None]) -> CouchStore:
        client, url = self.client, self._url()
        ssl = client.ssl
        if url is not None and url.inner_scheme == "https":
            ssl = ssl or True
        host = (url.hostname if url is not None else client.hostname) or "localhost"
        port = (url.port if url is not None else client.port) or self.default_port
        database = (url.virtual_host if url is not None else client.virtual_host) or ""
        web = HttpClient(host, port, ssl=ssl, limit=self.options.max_http_connections)
        name = database.strip("/") or DEFAULT_DATABASE
        return CouchStore(
            client, wake, self.options, web, name, partial(supplied, self._credentials)
        )

    def _url(self) -> BrokerURL | None:
        """Return the address of ``couchdb+https``, which comes unparsed, as kombu has it."""
        host = self.client.hostname or ""
        return BrokerURL.parse(f"couchdb+{host}") if "://" in host else None

    def _credentials(self) -> tuple[str | None, str | None]:
        """User and password of now.  May switch, where they are a function's."""
        client, url = self.client, self._url()
        provider = getattr(client, "credential_provider", None)
        if provider is not None:
            user, password = provider.get_credentials()
            return user, password
        if url is not None and url.password is not None:
            return url.userid, url.password
        password = client.password
        return client.userid or None, (password() if callable(password) else password) or None

    def driver_version(self) -> str:
        return __version__


class CouchStore(Store):
    """One link to a database.

    Arguments:
        web: the server.
        database: its name.
        login: asked for user and password when it is opened; may switch.
    """

    put_bytes: ClassVar[int] = 1024 * 1024
    topology: TopologyStore

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
        self.topology = CouchTopology(api, self._cache)
        self._owners = Owners(self, api, options.lease)
        self._claims = Claims(api, self._owners, wake)
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
        self._claims.load()
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
            revision = self._api.put(doc, is_durable=True)
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

    def drop_owned(self, links: Collection[str]) -> None:
        """Delete the exclusive queues of links that are dead.  May switch."""
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
        late = self._claims.expired()
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
        results = self._api.write([*docs, *marks], is_durable=True)[: len(docs)]
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
            requests = [
                self._with_copies(request) if request.entries else request for request in requests
            ]
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
            self.settle(
                [SettleRequest(Claimed("", None, handle), Settlement.REQUEUE) for handle in lost]
            )
        return lost

    def unconfirmed_claims(self) -> Sequence[tuple[str, Any]]:
        return self._claims.unconfirmed_claims()


def _refused(doc: Document, exc: Exception) -> list[Exception | None]:
    return [DocumentRefused(str(exc))]


def _is_refusal(exc: Exception) -> bool:
    return isinstance(exc, ServerRefuses)


def queue_document(name: str, declaration: Declaration) -> Document:
    """Return the document of a queue."""
    return {"_id": named(QUEUE, name), "declared": declaration.text()}


def read_queue(doc: Document) -> Declaration:
    """Return the declaration in a document; empty where it cannot be read."""
    return Declaration.read(str(doc.get("declared")).encode())


class TopologyCache:
    """The queues, exchanges and bindings of one database.  It may lag behind other processes."""

    def __init__(self) -> None:
        self.queues: dict[str, Declaration] = {}
        self.exchanges: dict[str, ExchangeRecord] = {}
        #: Exchange -> its bindings; the same object as long as nothing has changed.
        self._tables: dict[str, tuple[Row, ...]] = {}
        self._bindings: dict[str, dict[str, Row]] = {}
        self._revisions: dict[str, str] = {}
        #: What has changed and was not read yet: id -> revision.
        self._unread: dict[str, str] = {}

    @classmethod
    def of(cls, database: str) -> TopologyCache:
        """Return the cache of this hub for the database at an address."""
        return _caches.get().setdefault(database, cls())

    def table(self, exchange: str) -> tuple[Row, ...]:
        """Return the bindings of an exchange.  Never switches."""
        table = self._tables.get(exchange)
        if table is None:
            rows = self._bindings.get(exchange, {})
            table = self._tables[exchange] = tuple(rows[doc_id] for doc_id in sorted(rows))
        return table

    def fetch(self, api: CouchApi, doc_id: str) -> Document | None:
        """Read a document, and note what it says; None: there is none.  May switch."""
        known = self._revisions.get(doc_id)
        doc = api.get(doc_id)
        if doc is not None:
            self.take(doc)
        elif self._revisions.get(doc_id) == known:
            self.remove(doc_id)
        return doc

    def revision(self, doc_id: str) -> str | None:
        """Return the revision of a document that is known."""
        return self._revisions.get(doc_id)

    def revisions(self) -> dict[str, str]:
        """Return the ids of all known documents, with their revisions."""
        return dict(self._revisions)

    def keep(self, found: Collection[str], before: Mapping[str, str]) -> None:
        """Remove what was deleted while no link of this hub followed the changes.  Never switches.

        Arguments:
            found: the ids of all documents that were read.
            before: :meth:`revisions` before they were read.
        """
        for doc_id, revision in before.items():
            if doc_id not in found and self._revisions.get(doc_id) == revision:
                self.remove(doc_id)

    def refresh(self, api: CouchApi) -> None:
        """Read what has changed.  May switch, if something has."""
        if not self._unread:
            return
        unread = dict(self._unread)
        found = api.read(list(unread))
        for doc_id, revision in unread.items():
            if doc_id in found:
                self.take(found[doc_id])
            elif self._unread.get(doc_id) == revision:
                self.remove(doc_id)

    def note(self, doc_id: str, revision: str, is_deleted: bool) -> bool:
        """Note a changed document; return whether it is deleted now.  Never switches."""
        newest = self._unread.get(doc_id) or self._revisions.get(doc_id, "")
        if generation(revision) < generation(newest):
            return False
        if is_deleted:
            self.remove(doc_id)
        elif revision != newest:
            self._unread[doc_id] = revision
        return is_deleted

    def take(self, doc: Document) -> None:
        """Take a state of a document, if no newer one is known.  Never switches."""
        doc_id, revision = doc["_id"], doc["_rev"]
        name, kind = name_of(doc_id), doc_id[: len(QUEUE)]
        number = generation(revision)
        if number < generation(self._revisions.get(doc_id, "")):
            return
        self._revisions[doc_id] = revision
        if number >= generation(self._unread.get(doc_id, "")):
            self._unread.pop(doc_id, None)
        record = _record(doc)
        if kind == QUEUE:
            self.queues[name] = read_queue(doc)
        elif kind == EXCHANGE:
            self.exchanges[name] = record
        elif kind == BINDING:
            self._bindings.setdefault(name, {})[doc_id] = _row(record)
            self._tables.pop(name, None)

    def remove(self, doc_id: str) -> None:
        """Remove a deleted document.  Never switches."""
        self._revisions.pop(doc_id, None)
        self._unread.pop(doc_id, None)
        name = name_of(doc_id)
        if doc_id.startswith(QUEUE):
            self.queues.pop(name, None)
        elif doc_id.startswith(EXCHANGE):
            self.exchanges.pop(name, None)
        else:
            rows = self._bindings.get(name, {})
            rows.pop(doc_id, None)
            self._tables.pop(name, None)

    def bindings_to(self, name: str, to_exchange: bool) -> Sequence[str]:
        """Return the ids of the bindings that end at a queue or an exchange."""
        return [
            doc_id
            for rows in self._bindings.values()
            for doc_id, row in rows.items()
            if row.queue == name and row.to_exchange is to_exchange
        ]

    def bindings_from(self, exchange: str) -> Sequence[str]:
        """Return the ids of the bindings of an exchange."""
        return list(self._bindings.get(exchange, ()))


#: Database -> its cache, as long as a link has it.
_caches: Final[PerHub[WeakValueDictionary[str, TopologyCache]]] = PerHub(WeakValueDictionary)


class CouchTopology(TopologyStore):
    """The records of one database, as one link uses them."""

    def __init__(self, api: CouchApi, cache: TopologyCache) -> None:
        self._api = api
        self._cache = cache

    def get(self, exchange: str) -> ExchangeRecord | None:
        doc = self._cache.fetch(self._api, named(EXCHANGE, exchange))
        return None if doc is None else self._cache.exchanges[exchange]

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        self._store({"_id": named(EXCHANGE, exchange), "declared": dumps(record)})

    def delete(self, exchange: str) -> None:
        self._cache.refresh(self._api)
        self._remove([named(EXCHANGE, exchange), *self._cache.bindings_from(exchange)])

    def rows(self, exchange: str) -> Sequence[Row] | None:
        cache = self._cache
        cache.refresh(self._api)
        is_known = exchange in cache.exchanges or exchange in PREDECLARED
        if not is_known and self.get(exchange) is None:
            return None
        return cache.table(exchange)

    def add(self, exchange: str, row: Row) -> None:
        record = {**row._asdict(), "arguments": dict(row.arguments or {})}
        self._store({"_id": binding_id(exchange, row), "declared": dumps(record)})

    def remove(self, exchange: str, row: Row) -> bool:
        return bool(self._remove([binding_id(exchange, row)]))

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        self._cache.refresh(self._api)
        ids = self._cache.bindings_to(destination, to_exchange=is_exchange)
        self._remove(ids)
        return {name_of(doc_id) for doc_id in ids}

    def _store(self, doc: Document) -> None:
        """Store what is equal for all programs that declare it."""
        if self._cache.revision(doc["_id"]) is not None:
            return
        revision = self._api.put(doc, is_durable=True)
        if revision is None:
            found = self._api.get(doc["_id"])
            if found is None:
                return self._store(doc)  # it was deleted meanwhile
            doc, revision = found, found["_rev"]
        return self._cache.take({**doc, "_rev": revision})

    def _remove(self, ids: Sequence[str]) -> Collection[str]:
        """Delete documents; return the ids of those that were there."""
        found = self._api.read(ids) if ids else {}
        if found:
            self._api.write([deleted(doc_id, doc["_rev"]) for doc_id, doc in found.items()])
        for doc_id in ids:
            self._cache.remove(doc_id)
        return found


def _record(doc: Document) -> Mapping[str, Any]:
    try:
        record = loads(doc.get("declared") or "{}")
    except (ValueError, TypeError):
        return {}
    return record if isinstance(record, dict) else {}


def _row(record: Mapping[str, Any]) -> Row:
    return Row(
        str(record.get("routing_key", "")),
        str(record.get("pattern", "")),
        str(record.get("queue", "")),
        _table(record.get("arguments")) or None,
        bool(record.get("to_exchange")),
    )


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class Owners:
    """The heartbeats of the links to one database.

    Arguments:
        store: that of this link; it deletes the exclusive queues of links that are dead.
        lease: seconds.

    Attributes:
        token: names this link in what it holds; another one after it was taken for dead.
    """

    def __init__(self, store: CouchStore, api: CouchApi, lease: float) -> None:
        self._store = store
        self._api = api
        self._lease = lease
        #: This link has, or had, exclusive queues.
        self.has_queues = False
        self.token = ""
        self._revision = ""
        self._beat_at = 0.0
        #: One heartbeat at a time; callers that wait for it act under the token that it returns.
        self._beating = BoundedSemaphore()
        #: Id of another's document -> its revision, and since when it has that.
        self._seen: dict[str, tuple[str, float]] = {}

    @property
    def _id(self) -> str:
        # The id contains the lease, so that the document need not be read.
        return f"{named(OWNER, self.token)}!{int(self._lease * 1000)}"

    @property
    def is_due(self) -> bool:
        """Whether a heartbeat is due: renewals may come in several calls."""
        return monotonic() - self._beat_at > self._lease / 6

    def begin(self) -> None:
        """Store the first heartbeat.  May switch."""
        self.token = os.urandom(8).hex()
        self._revision = self._api.put(self._sign()) or ""
        self._beat_at = monotonic()

    def _sign(self) -> Document:
        return {"_id": self._id, "link": self._store.owner}

    def end(self) -> None:
        """Delete this link's document, after everything was requeued.  May switch."""
        self._api.write([deleted(self._id, self._revision)])

    def beat(self) -> None:
        """Store a heartbeat.  May switch.

        Where this link was taken for dead, what it held was requeued, and it has another token.

        Raises:
            LeaseExpired: it was, and its exclusive queues are gone.
        """
        with self._beating:
            self._beat()

    def wake_up(self) -> None:
        """Store a heartbeat before a claim, if the last one is long ago.  May switch.

        A process that was stopped would claim in the name of the dead.
        """
        with self._beating:
            if self._is_late:
                self._beat()

    @property
    def _is_late(self) -> bool:
        return monotonic() - self._beat_at > 2 / 3 * self._lease

    def _beat(self) -> None:
        if self._is_late:
            self.note_gap()  # this process was stopped: it has not heard the others either
        self._beat_at = monotonic()
        if self._renew():
            return
        found = self._api.get(self._id)
        if found is not None and "swept" not in found:
            self._revision = found["_rev"]  # the reply to an earlier one was lost
            if self._renew():
                return
        if self.has_queues:
            raise LeaseExpired
        self.begin()

    def _renew(self) -> bool:
        revision = self._api.put({**self._sign(), "_rev": self._revision})
        self._revision = revision or self._revision
        return revision is not None

    # -- others

    def note(self, doc_id: str, revision: str, is_deleted: bool) -> None:
        """Note the heartbeat of another link.  Never switches."""
        if is_deleted:
            self._seen.pop(doc_id, None)
        elif doc_id != self._id and self._seen.get(doc_id, ("", 0.0))[0] != revision:
            self._seen[doc_id] = (revision, monotonic())

    def note_gap(self) -> None:
        """Nothing could be heard for a while: the time of the others begins anew.  Never switches."""
        now = monotonic()
        self._seen = {doc_id: (revision, now) for doc_id, (revision, _) in self._seen.items()}

    def sweep(self) -> int:
        """Requeue what dead links hold; return the number of messages.  May switch."""
        if not self._silent():
            return 0
        sleep(random.uniform(0, SWEEP_DELAY) * self._lease)
        marks: list[Document] = []
        for doc_id, revision in self._silent()[:BATCH]:
            self._seen[doc_id] = (revision, monotonic())
            marks.append({"_id": doc_id, "_rev": revision, "swept": self.token})
        if not marks:
            return 0
        links = self._links(marks)
        for mark in marks:
            mark["link"] = links.get(mark["_id"])  # for who comes, if this process ends here
        # A conflict: it is alive, or another process was faster.
        ours = [result for result in self._api.write(marks) if "rev" in result]
        if not ours:
            return 0
        count = self._requeue({name_of(mark["id"]) for mark in ours})
        self._store.drop_owned({links[mark["id"]] for mark in ours if mark["id"] in links})
        self._api.write([deleted(mark["id"], mark["rev"]) for mark in ours])
        for result in ours:
            self._seen.pop(result["id"], None)
        return count

    def _links(self, marks: Sequence[Document]) -> dict[str, str]:
        """Return the links of documents that are to be marked, by the ids of those."""
        found = self._api.read([mark["_id"] for mark in marks])
        return {
            doc_id: doc["link"] for doc_id, doc in found.items() if isinstance(doc.get("link"), str)
        }

    def _silent(self) -> list[tuple[str, str]]:
        """Return those that were silent for their lease, and their revisions.  Never switches."""
        now = monotonic()
        return [
            (doc_id, revision)
            for doc_id, (revision, since) in self._seen.items()
            if now - since > _lease_of(doc_id, self._lease)
        ]

    def _requeue(self, dead: Collection[str]) -> int:
        count = 0
        for page in self._api.all_rows(range_of(MESSAGE)):
            held = [row["id"] for row in page if not is_waiting(row["value"]["rev"])]
            for start in range(0, len(held), BATCH):
                count += self._release(held[start : start + BATCH], dead)
            if self.is_due:
                self.beat()  # there may be very many messages
        return count

    def _release(self, ids: Sequence[str], dead: Collection[str]) -> int:
        docs = [doc for doc in self._api.read(ids).values() if not is_waiting(doc["_rev"])]
        # Read only now: a link stores its heartbeat before it claims any of these.
        living = {
            name_of(row["id"]) for page in self._api.all_rows(range_of(OWNER)) for row in page
        }.difference(dead)
        free: list[Document] = [
            released(doc, self.token) for doc in docs if doc.get("owner") not in living
        ]
        return sum("rev" in result for result in self._api.write(free)) if free else 0


def _lease_of(doc_id: str, default: float) -> float:
    millis = doc_id.rpartition("!")[2]
    return int(millis) / 1000 if millis.isdecimal() else default
