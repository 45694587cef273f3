"""CouchDB's HTTP interface: documents in batches, the feed of changes, and errors for refusals.

Messages, queues, exchanges, bindings and owners are documents with these ids:

====================================================  ==========================================
``gcb!exchange!digest``                               a binding
``gco!owner!lease``                                   a heartbeat of a link
``gcq!queue``                                         the declaration of a queue
``gcx!exchange``                                      the declaration of an exchange
``gcy!time!message``                                  the time at which a message expires
``gcz!queue!priority!time!origin``                    a message; the highest priority sorts first
====================================================  ==========================================

The documents that a link reads when it opens sort before the rest, so that one request reads them.
Names are quoted as in URLs, so that ``!``, which sorts before all other characters left, ends them.

A message has its ``queue``, the envelope as text in ``payload``, and while it is claimed an ``owner``.

The generation of a revision, the number before its hyphen, tells whether a message waits: each claim
and each release adds a revision, so an odd generation waits and an even one is claimed.  A list of
ids and revisions, which CouchDB keeps in its tree, is thus enough to find waiting messages.

No two links ever make the same revision of a document: a server that names revisions by their content
(CouchDB, PouchDB) could not tell them apart, and both would believe that they had claimed the message.

Bodies stay in the envelope, in base64, and are no attachments: many documents are stored, read and
claimed in one request, and each attachment would take one more.  A body is written a second time when
its message is claimed.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha1
from time import monotonic
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote, unquote, urlencode

import gevent

from greenconn.broker.envelope import Envelope, envelope_json, mark_redelivered, read_envelope
from greenconn.broker.exchanges import Row
from greenconn.broker.port import Claimed, Entry
from greenconn.exceptions import (
    AccessRefused,
    FrameError,
    NotAllowed,
    PublishRefused,
    RecoverableConnectionError,
    ResourceError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient, HttpResponse, ResponseLines
from greenconn.green.supervisor import spawn

#: A JSON object.
Document: TypeAlias = dict[str, Any]

BINDING: Final = "gcb"
OWNER: Final = "gco"
QUEUE: Final = "gcq"
EXCHANGE: Final = "gcx"
MARK: Final = "gcy"
MESSAGE: Final = "gcz"


class Range(NamedTuple):
    """Ids from *start* to *end*, the latter not included."""

    start: str
    end: str


#: The documents that a link reads when it opens.
SHARED_RANGE: Final = Range(BINDING, MARK)


def named(kind: str, name: str) -> str:
    """Return the id of the document of a queue, exchange or owner."""
    return f"{kind}!{quote(name, safe='')}"


def name_of(doc_id: str) -> str:
    """Return the name in an id: the queue of a message, the exchange of a binding."""
    return unquote(doc_id.split("!", 2)[1])


def range_of(kind: str, name: str | None = None) -> Range:
    """Return the range of all ids of a kind, or of those that belong to *name*."""
    # '"' follows '!'.
    return Range(f"{kind}!", f'{kind}"') if name is None else _within(named(kind, name))


def _within(prefix: str) -> Range:
    return Range(f"{prefix}!", f'{prefix}"')


def message_id(queue: str, priority: int, micros: int, origin: str) -> str:
    """Return the id of a message.

    Arguments:
        priority: from 0 to 255.
        micros: microseconds since 1970, different for each message of one origin.
    """
    return f"{named(MESSAGE, queue)}!{255 - priority:03}!{micros:017}!{origin}"


def binding_id(exchange: str, row: Row) -> str:
    """Return the id of a binding; equal bindings have the same id."""
    arguments = sorted((row.arguments or {}).items(), key=lambda item: item[0])
    facts = repr((row.routing_key, row.pattern, row.queue, row.to_exchange, arguments))
    return f"{named(BINDING, exchange)}!{sha1(facts.encode(), usedforsecurity=False).hexdigest()}"


def generation(revision: str) -> int:
    """Return the number of revisions so far."""
    number = revision.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def is_waiting(revision: str) -> bool:
    """Return whether a message of that revision waits to be claimed."""
    return generation(revision) % 2 == 1


def deleted(doc_id: str, revision: str) -> Document:
    """Return what deletes a document."""
    return {"_id": doc_id, "_rev": revision, "_deleted": True}


#: Id, revision and owner of a message that is held.
Handle = tuple[str, str, str]
#: The revision of one that may be held: the reply to the claim never came.
UNKNOWN: Final = ""


class Writer:
    """Makes the documents of new messages, which sort in the order in which they were made."""

    def __init__(self) -> None:
        self._origin = os.urandom(4).hex()
        self._micros = 0

    def document(self, entry: Entry) -> Document:
        """Return the document of a waiting message.  Never switches."""
        now = time.time()
        self._micros = max(self._micros + 1, int(now * 1e6))
        doc: Document = {
            "_id": message_id(entry.queue, entry.priority, self._micros, self._origin),
            "queue": entry.queue,
            "payload": envelope_json(entry.envelope),
        }
        if entry.delay:
            doc["due_at"] = now + entry.delay
        if entry.lifetime is not None:
            doc["expires_at"] = now + entry.delay + entry.lifetime
        return doc


def due_at(doc: Document) -> float:
    """Return the time from which a message may be claimed; 0: any time."""
    due = doc.get("due_at")
    return due if isinstance(due, (int, float)) else 0.0


def claimed(doc: Document, owner: str) -> Document:
    """Return the next revision of a waiting message, claimed by *owner*."""
    held = {**doc, "owner": owner}
    for name in ("due_at", "freed"):
        held.pop(name, None)
    return held


def is_held_as(doc: Document, handle: Handle) -> bool:
    """Return whether the claim of a handle still holds the message."""
    _, revision, owner = handle
    if revision != UNKNOWN:
        return bool(doc["_rev"] == revision)
    return doc.get("owner") == owner and not is_waiting(doc["_rev"])


def released(
    doc: Document,
    by: str,
    delay: float = 0.0,
    is_unseen: bool = False,
    is_unhandled: bool = False,
) -> Document:
    """Return the next revision of a claimed message, which waits again.

    Arguments:
        by: names the link that gives it back.
        is_unseen, is_unhandled: see :class:`~greenconn.broker.port.SettleRequest`.
    """
    free = {**doc, "freed": by}
    free.pop("owner", None)  # one stored once more after it had gone is even and has none
    if delay:
        free["due_at"] = time.time() + delay
    if is_unseen or is_unhandled:
        free["unseen"] = _unseen(doc) + 1
    if is_unhandled:
        free["payload"] = _marked_redelivered(free.get("payload"))
    return free


def _marked_redelivered(payload: Any) -> Any:
    try:
        envelope = read_envelope(payload)
        mark_redelivered(envelope)
        return envelope_json(envelope)
    except Exception:  # a stranger's may be of any form
        return payload


def claim_of(doc: Document, handle: Handle, queue: str) -> Claimed:
    """Return the claim of a message whose document was read before the claim."""
    envelope = _envelope(doc)
    raw = b"" if envelope is not None else _raw(doc.get("payload"))
    expires = doc.get("expires_at")
    is_late = isinstance(expires, (int, float)) and expires <= time.time()
    return Claimed(
        queue,
        envelope,
        handle,
        deliveries=max(0, generation(doc["_rev"]) // 2 - _unseen(doc)),
        raw=raw,
        dead="expired" if is_late else None,
    )


def _raw(payload: Any) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return text.encode("utf-8", "surrogatepass")


def _unseen(doc: Document) -> int:
    unseen = doc.get("unseen")
    return max(unseen, 0) if isinstance(unseen, int) else 0


def _envelope(doc: Document) -> Envelope | None:
    try:
        envelope: Any = read_envelope(doc["payload"])
    except (ValueError, TypeError, KeyError):
        return None
    is_one = isinstance(envelope, dict) and "body" in envelope and "properties" in envelope
    return envelope if is_one else None


class LinkLost(RecoverableConnectionError):  # type: ignore[misc]
    """The server, or the database, cannot be used now."""


class LoginRefused(AccessRefused):  # type: ignore[misc]
    """The server does not take the user name or the password, or they may not do this."""


class NoSuchDatabase(NotAllowed):  # type: ignore[misc]
    """There is no such database, and it cannot be made."""


class NotCouch(FrameError):  # type: ignore[misc]
    """The server does not speak CouchDB's protocol."""


class ServerRefuses(ResourceError):  # type: ignore[misc]
    """The server refuses a request."""


class DocumentRefused(PublishRefused):
    """The server does not store a message."""


_REMEDIES: Final[dict[int, str]] = {
    401: "wrong user name or password",
    403: (
        "the user may not do this: it must be a member of the database, or an administrator to "
        "create one"
    ),
    413: "send less, or raise max_document_size or max_http_request_size in CouchDB's settings",
}


def refusal(status: int, reply: Any, where: str, what: str) -> Exception:
    """Return the error for a response of an unexpected status.

    Arguments:
        reply: what its body says.
        what: the operation, for the message.
    """
    said = ""
    if isinstance(reply, dict):
        said = ": ".join(str(reply[key]) for key in ("error", "reason") if reply.get(key))
    text = f"{where}: {what}: {status} {said}".rstrip()
    remedy = _REMEDIES.get(status)
    if remedy:
        text = f"{text} ({remedy})"
    if status in (401, 403):
        return LoginRefused(text)
    if status == 404 or status >= 500 or status == 429:
        # Every path that is asked for is there as long as the database is.
        return LinkLost(text)
    return ServerRefuses(text)


#: Bytes of a reply that are taken; of one with more, fewer documents are asked for.
LARGEST: Final = 64 * 1024 * 1024
#: Documents that are listed in one request.
PAGE: Final = 1000
#: Has CouchDB 1 write to disk before it replies, with ``delayed_commits`` too (its HTTP API, 1.6).
FULL_COMMIT: Final = {"X-Couch-Full-Commit": "true"}

#: A compact form, as CouchDB writes it too.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode

#: Heartbeats that may be missed, and after how many the server was stopped or out of reach.
MISSED: Final = 3
LATE: Final = 1.5


class CouchApi:
    """One database.

    Arguments:
        web: the server.
        database: its name.
        where: what messages call it, without a password.
        timeout: seconds for one request; None waits.
    """

    def __init__(self, web: HttpClient, database: str, where: str, timeout: float | None) -> None:
        self.where = where
        self._web = web
        self._path = f"/{quote(database, safe='')}"
        self._timeout = timeout
        self._headers: dict[str, str] = {"Content-Type": "application/json"}

    def log_in(self, user: str | None, password: str | None) -> None:
        """Send these with each request from now on."""
        if user is not None or password is not None:
            login = b64encode(f"{user or ''}:{password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {login}"

    def open(self, deadline: Deadline) -> str:
        """Make the database if it is missing; return where its changes are now.  May switch.

        Raises:
            LoginRefused: the server refused the login.
            NoSuchDatabase: the database does not exist, and must not be created.
            NotCouch: the server is not CouchDB.
        """
        status, found = self._ask("GET", "", deadline=deadline)
        if status == 404:
            status, made = self._ask("PUT", "", deadline=deadline.renewed())
            if status not in (201, 202, 412):  # 412: another client was faster
                if status in (400, 401, 403):
                    raise NoSuchDatabase(
                        str(refusal(status, made, self.where, "creating the database"))
                    )
                raise refusal(status, made, self.where, "creating the database")
            status, found = self._ask("GET", "", deadline=deadline.renewed())
        if status != 200:
            raise refusal(status, found, self.where, "opening the database")
        if not isinstance(found, dict) or "update_seq" not in found:
            raise NotCouch(f"{self.where}: the server is not CouchDB")
        return _sequence(found["update_seq"])

    def get(self, doc_id: str) -> Document | None:
        """Return a document; None: there is none.  May switch."""
        status, found = self._ask("GET", f"/{quote(doc_id, safe='')}")
        if status == 404 and _reason(found) in ("missing", "deleted"):
            return None
        doc: Document = self._good(status, found, "reading a document")
        return doc

    def put(self, doc: Document, *, is_durable: bool = False) -> str | None:
        """Store a document; return its revision, or None on a conflict.  May switch.

        Arguments:
            is_durable: see :meth:`write`.
        """
        (result,) = self.write([doc], is_durable=is_durable)
        if "rev" in result:
            return str(result["rev"])
        if result.get("error") == "conflict":
            return None
        raise refusal(403, result, self.where, "storing a document")

    def write(
        self, docs: Sequence[Document], *, may_repeat: bool = True, is_durable: bool = False
    ) -> list[Document]:
        """Store, change or delete documents; return for each its ``rev`` or ``error``.  May switch.

        Arguments:
            may_repeat: it may be sent twice, where a kept connection was found closed: then there may
                be conflicts with what we stored ourselves.
            is_durable: they, and all that was written before, are on disk when the server replies.
                Without it a server with ``delayed_commits``, CouchDB 1 by default, may take a second.
        """
        status, reply = self._ask(
            "POST",
            "/_bulk_docs",
            {"docs": docs},
            headers=FULL_COMMIT if is_durable else {},
            may_repeat=may_repeat,
        )
        results = self._good(status, reply, "storing documents")
        if not isinstance(results, list):
            raise NotCouch(f"{self.where}: the response has no list of results")
        found = {result.get("id"): result for result in results if isinstance(result, dict)}
        try:
            return [found[doc["_id"]] for doc in docs]
        except KeyError as exc:
            raise NotCouch(f"{self.where}: no result for document {exc}") from None

    def rows(self, within: Range, limit: int = PAGE, has_docs: bool = False) -> list[Document]:
        """Return the first rows of a range of ids.  May switch."""
        query = {
            "startkey": _encode(within.start),
            "endkey": _encode(within.end),
            "inclusive_end": "false",
            "limit": str(limit),
            "include_docs": "true" if has_docs else "false",
        }
        status, reply = self._ask("GET", f"/_all_docs?{urlencode(query)}")
        return self._rows(status, reply)

    def all_rows(self, within: Range, has_docs: bool = False) -> Iterable[list[Document]]:
        """Yield all rows of a range of ids, page by page.  May switch."""
        while True:
            page = self.rows(within, PAGE, has_docs)
            if page:
                yield page
            if len(page) < PAGE:
                return
            within = within._replace(start=page[-1]["id"] + "\0")

    def read(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return those of these documents that are there.  May switch."""
        status, reply = self._ask(
            "POST", "/_all_docs?include_docs=true", {"keys": list(ids)}, may_repeat=True
        )
        rows = self._rows(status, reply)
        return {row["id"]: row["doc"] for row in rows if row.get("doc")}

    def changes(self, since: str, heartbeat: float, deadline: Deadline) -> ResponseLines:
        """Return the feed of changes from now on, line by line.  May switch.

        An empty line comes each *heartbeat* seconds."""
        query = {
            "feed": "continuous",
            "since": since,
            "heartbeat": str(int(heartbeat * 1000)),
        }
        lines = self._web.lines(
            "GET",
            f"{self._path}/_changes?{urlencode(query)}",
            deadline=deadline,
            headers=self._headers,
        )
        if lines.status != 200:
            lines.close()
            raise self._lost(refusal(lines.status, None, self.where, "reading changes"))
        return lines

    def _ask(
        self,
        method: str,
        target: str,
        content: Any = None,
        *,
        headers: Mapping[str, str] = {},
        may_repeat: bool | None = None,
        deadline: Deadline | None = None,
    ) -> tuple[int, Any]:
        reply = self._web.request(
            method,
            self._path + target,
            deadline=deadline or Deadline(self._timeout),
            headers={**self._headers, **headers},
            body=b"" if content is None else _encode(content).encode(),
            may_repeat=may_repeat,
            limit=LARGEST,
        )
        return reply.status, self._content(reply)

    def _content(self, reply: HttpResponse) -> Any:
        try:
            return json.loads(reply.body)
        except ValueError:
            if reply.status >= 400:
                return None  # a proxy's page, perhaps
            raise NotCouch(f"{self.where}: the response is not JSON: is this a CouchDB?") from None

    def _good(self, status: int, reply: Any, what: str) -> Any:
        if status in (200, 201, 202):
            return reply
        raise self._lost(refusal(status, reply, self.where, what))

    def _rows(self, status: int, reply: Any) -> list[Document]:
        rows = self._good(status, reply, "listing documents")
        try:
            return [row for row in rows["rows"] if "id" in row]
        except (TypeError, KeyError):
            raise NotCouch(f"{self.where}: a list of documents without rows") from None

    def _lost(self, error: Exception) -> Exception:
        """Return the error of a lost session: the login was valid, so the next life logs in again."""
        return LinkLost(str(error)) if isinstance(error, LoginRefused) else error


def _reason(reply: Any) -> str:
    return str(reply.get("reason", "")) if isinstance(reply, Mapping) else ""


def _sequence(given: Any) -> str:
    """Return a place in the feed of changes, which is a number or a text."""
    return given if isinstance(given, str) else _encode(given)


class ChangesFeed:
    """Follows the changes of one database, over a connection of its own, until it is stopped.

    One that breaks is lost, and the link with it.  It cannot go on where it was: a server that crashed
    may have lost what it had not yet written to its disk (acks, with ``delayed_commits``), and then it
    numbers later changes as those, which would never be reported.

    Arguments:
        on_change: gets id, revision and whether it was deleted.  Must not switch.
        on_gap: some time has passed in which nothing could be heard.  Must not switch.
        on_lost: there is no feed any more.  Must not switch.
    """

    def __init__(
        self,
        api: CouchApi,
        heartbeat: float,
        on_change: Callable[[str, str, bool], None],
        on_gap: Callable[[], None],
        on_lost: Callable[[BaseException], None],
    ) -> None:
        self._api = api
        self._heartbeat = heartbeat
        self._on_change = on_change
        self._on_gap = on_gap
        self._on_lost = on_lost
        self._since = ""
        self._greenlet: gevent.Greenlet[..., Any] | None = None

    def start(self, since: str) -> None:
        """Follow what changes after *since*.  Never switches."""
        self._since = since
        self._greenlet = spawn(f"changes:{self._api.where}", self._run)

    def stop(self) -> None:
        """Follow no more.  Never switches."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill(block=False)

    def _run(self) -> None:
        try:
            while True:
                self._follow()
                self._on_gap()
        except Exception as exc:
            self._on_lost(exc)

    def _follow(self) -> None:
        """Follow one feed to the end that the server has announced."""
        beat = self._heartbeat
        with self._api.changes(self._since, beat, Deadline(MISSED * beat)) as lines:
            heard_at = monotonic()
            while (line := lines.line(Deadline(MISSED * beat))) is not None:
                before, heard_at = heard_at, monotonic()
                if heard_at - before > LATE * beat:
                    self._on_gap()
                if line and not self._take(line):
                    return
        raise LinkLost(f"{self._api.where}: the feed of changes has ended")

    def _take(self, line: bytes) -> bool:
        """Take one line; return whether the feed goes on."""
        try:
            change = json.loads(line)
            if "last_seq" in change:
                return False
            doc_id, is_deleted = change["id"], bool(change.get("deleted"))
            revisions = [each["rev"] for each in change["changes"]]
            since = change["seq"]
        except (ValueError, KeyError, TypeError) as exc:
            raise NotCouch(f"{self._api.where}: a change cannot be read: {exc!r}") from exc
        if revisions:
            self._on_change(doc_id, revisions[0], is_deleted)
        self._since = since if isinstance(since, str) else json.dumps(since)
        return True
