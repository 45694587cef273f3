"""Messages as documents: kombu's fields, and those of greenconn.

A message that waits is what kombu makes of it: ``payload`` (the envelope as JSON), ``queue`` and
``priority``, of which the lowest comes first.  A message that is claimed has no ``queue``, so that
no program of kombu's, which looks for that, can take it: the name is in ``claimed`` meanwhile.
``claim`` says by which claim, and ``lease_until`` when it is redelivered unless that is renewed.  A
delayed message looks the same, without a claim, until ``due_at``.  Renaming is one update of one
document, which is atomic: a message is in one of the two states, even if a process dies.
``deliveries`` counts the claims; one that was taken back before a handler began is not counted, and
leaves ``redelivered``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from bson import ObjectId

from greenconn.broker.envelope import mark_redelivered, read_envelope
from greenconn.broker.port import Claimed, Entry

Document = dict[str, Any]

#: The highest priority (kombu's).
HIGHEST: Final = 9
#: When a message need not be delivered any more: for the server (kombu's), and for consumers of ours.
EXPIRE_AT: Final = "expire_at"
DEAD_AT: Final = "dead_at"
#: Where the former is while the message is claimed: the server must not remove it then.
HELD_EXPIRE_AT: Final = "held_expire_at"
#: A message has it that was delivered without being counted.
REDELIVERED: Final = "redelivered"

#: Requeues a claimed message.
REQUEUE: Final[Document] = {
    "$rename": {"claimed": "queue", HELD_EXPIRE_AT: EXPIRE_AT},
    "$unset": {"claim": "", "lease_until": "", "due_at": ""},
}


class Handle(NamedTuple):
    """A claimed message: its key, and the claim."""

    id: Any
    claim: Any


def claim_update(claim: Any, lease_until: datetime) -> Document:
    """Return the update that claims a waiting message."""
    return {
        "$rename": {"queue": "claimed", EXPIRE_AT: HELD_EXPIRE_AT},
        "$set": {"claim": claim, "lease_until": lease_until},
        "$inc": {"deliveries": 1},
    }


def message_of(entry: Entry, payload: str, now: Callable[[], datetime], *, ttl: bool) -> Document:
    """Return the document of a message on its way into a queue.

    Arguments:
        now: tells what time it is on the server.
        ttl: the server removes what has expired.
    """
    priority = HIGHEST - min(max(entry.priority, 0), HIGHEST)
    document: Document = {"_id": ObjectId(), "payload": payload, "priority": priority}
    if entry.delay > 0:
        document["claimed"] = entry.queue
        document["due_at"] = now() + timedelta(seconds=entry.delay)
    else:
        document["queue"] = entry.queue
    if entry.lifetime is not None:
        end = now() + timedelta(seconds=entry.delay + entry.lifetime)
        name = DEAD_AT
        if ttl:
            name = HELD_EXPIRE_AT if entry.delay > 0 else EXPIRE_AT
        document[name] = end
    return document


def claimed_of(
    document: Document, claim: Any, queue: str, dead: str | None = None, *, counted: int = 0
) -> Claimed:
    """Return a message that was claimed.

    Arguments:
        claim: the claim.
        queue: where it was.
        dead: why it is not delivered.
        counted: 1 where *document* is as this claim has left it.
    """
    handle = Handle(document["_id"], claim)
    payload: Any = document.get("payload")
    known = document.get("deliveries")
    deliveries = max(known - counted, 0) if isinstance(known, int) else 0
    try:
        envelope = read_envelope(payload)
        if isinstance(envelope, dict):
            if REDELIVERED in document:
                with suppress(Exception):  # a stranger's may be of any form
                    mark_redelivered(envelope)
            return Claimed(queue, envelope, handle, deliveries, dead=dead)
    except (TypeError, ValueError):
        pass  # not written by any of us
    raw = payload if isinstance(payload, bytes) else str(payload).encode()
    return Claimed(queue, None, handle, deliveries, raw, dead)
