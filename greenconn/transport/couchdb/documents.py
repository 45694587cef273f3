"""Messages, queues, exchanges, bindings and owners as documents: their ids and fields.

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
from hashlib import sha1
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

from greenconn.broker.envelope import Envelope, mark_redelivered, read_envelope
from greenconn.broker.exchanges import Row
from greenconn.broker.port import Claimed, Entry
from greenconn.jsoncodec import dumps

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
            "payload": dumps(entry.envelope),
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
        return dumps(envelope)
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
