"""Messages as documents.

A message that waits is what kombu's transport stored: ``queue``, and the envelope as text in
``payload``; so its view finds it.  One that is held has the text in ``held``, and an ``owner``.

No two links ever make the same revision of a document: a server that names revisions by what is in
them (CouchDB, PouchDB) could not tell them apart, and who comes second would believe that he was first.

Bodies stay in the envelope, in base64, and are no attachments: many documents are stored, read and
claimed in one request, and each attachment would be one more.  A body is written a second time when its
message is claimed.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Final

from greenconn.broker.port import Claimed, Entry
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.couchdb.api import Document
from greenconn.transport.couchdb.names import generation, is_waiting, message_id
from greenconn.transport.virtual.publishing import Envelope

__all__ = [
    "UNKNOWN",
    "Handle",
    "Writer",
    "claim_of",
    "claimed",
    "due_at",
    "is_held_as",
    "is_message",
    "released",
]

#: Id, revision and owner of a message that is held.
Handle = tuple[str, str, str]
#: The revision of one that may be held: the answer to the claim never came.
UNKNOWN: Final = ""


class Writer:
    """Makes the documents of new messages, which sort in the order in which they were made."""

    def __init__(self) -> None:
        self._origin = os.urandom(4).hex()
        self._micros = 0

    def document(self, entry: Entry) -> Document:
        """A message that waits.  Never switches."""
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


def is_message(doc: Document) -> bool:
    """Whether a document is a message that waits, whoever wrote it."""
    return isinstance(doc.get("queue"), str) and isinstance(doc.get("payload"), str)


def due_at(doc: Document) -> float:
    """When a message may be claimed; 0: it may."""
    due = doc.get("due_at")
    return due if isinstance(due, (int, float)) else 0.0


def claimed(doc: Document, owner: str) -> Document:
    """The next revision of a message that waits: *owner* holds it."""
    held = {**doc, "held": doc.get("payload"), "owner": owner}
    for name in ("payload", "due_at", "freed"):
        held.pop(name, None)
    return held


def is_held_as(doc: Document, handle: Handle) -> bool:
    """Whether a message is held by the claim that a handle is of."""
    _, revision, owner = handle
    if revision != UNKNOWN:
        return bool(doc["_rev"] == revision)
    return doc.get("owner") == owner and not is_waiting(doc["_rev"])


def released(doc: Document, by: str, delay: float = 0.0, is_unseen: bool = False) -> Document:
    """The next revision of a message that is held: it waits again.

    Arguments:
        by: names the link that gives it back.
    """
    # What was stored once more after it had gone is even, and was never claimed.
    free = {**doc, "payload": doc.get("held", doc.get("payload")), "freed": by}
    free.pop("held", None)
    free.pop("owner", None)
    if delay:
        free["due_at"] = time.time() + delay
    if is_unseen:
        free["unseen"] = _unseen(doc) + 1
    return free


def claim_of(doc: Document, handle: Handle, queue: str) -> Claimed:
    """A message that is held now, whose document was read before."""
    envelope = _envelope(doc)
    raw = b"" if envelope is not None else json.dumps(doc.get("payload")).encode()
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


def _unseen(doc: Document) -> int:
    unseen = doc.get("unseen")
    return unseen if isinstance(unseen, int) else 0


def _envelope(doc: Document) -> Envelope | None:
    try:
        envelope: Any = loads(doc["payload"])
    except (ValueError, TypeError, KeyError):
        return None
    is_one = isinstance(envelope, dict) and "body" in envelope and "properties" in envelope
    return envelope if is_one else None
