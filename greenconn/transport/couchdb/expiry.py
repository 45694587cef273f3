"""Messages that expire: a mark for each, which sorts by the time, so that no query searches for them.

``gcy!milliseconds!message`` is stored together with a message that has a time to live, and goes when its
time has come and the message is gone.  Whoever claims messages takes what is due from any queue, and
lets it become a dead letter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from greenconn.broker.port import Claimed
from greenconn.transport.couchdb.api import CouchApi, Document
from greenconn.transport.couchdb.letters import claim_of
from greenconn.transport.couchdb.names import MARK, Range, is_waiting
from greenconn.transport.couchdb.taking import Taking

__all__ = ["Expiry", "mark_of"]

_FIRST: Final = f"{MARK}!"
_END: Final = f'{MARK}"'

#: Seconds after which an expired message that somebody holds is looked at again.
HELD: Final = 1.0


def mark_of(doc: Document) -> Document | None:
    """The mark of a message; None: it does not expire."""
    expires = doc.get("expires_at")
    return None if expires is None else {"_id": f"{_until(expires)}!{doc['_id']}"}


def _until(seconds: float) -> str:
    return f"{_FIRST}{int(seconds * 1000) + 1:015}"


class Expiry:
    """The expiry of messages in one database.

    Attributes:
        due_at: when the next one does, in seconds since 1970; None: none is known.
    """

    def __init__(self, api: CouchApi, taking: Taking) -> None:
        self._api = api
        self._taking = taking
        self.due_at: float | None = None

    def look(self) -> None:
        """Look for the first.  May switch."""
        self.due_at = self._next(_FIRST)

    def note(self, doc_id: str) -> bool:
        """There is a mark; return whether it is the first.  Never switches."""
        due = _due(doc_id)
        if due is None or (self.due_at is not None and self.due_at <= due):
            return False
        self.due_at = due
        return True

    @property
    def is_due(self) -> bool:
        """Whether there is something to take."""
        return self.due_at is not None and self.due_at <= time.time()

    def late(self) -> set[str]:
        """The ids of all messages that have expired, some of which are gone.  May switch, if any."""
        if not self.is_due:
            return set()
        pages = self._api.all_rows(Range(_FIRST, _until(time.time())))
        return {row["id"].split("!", 2)[2] for page in pages for row in page}

    def take(self) -> list[Claimed]:
        """Claim what has expired and waits.  May switch."""
        now = time.time()
        self._begin()
        taken: list[Claimed] = []
        is_held = False
        for page in self._api.all_rows(Range(_FIRST, _until(now))):
            marks = {row["id"].split("!", 2)[2]: row for row in page}
            found = self._api.read(list(marks))
            idle = [row for doc_id, row in marks.items() if doc_id not in found]
            if idle:
                self._api.write(
                    [
                        {"_id": row["id"], "_rev": row["value"]["rev"], "_deleted": True}
                        for row in idle
                    ]
                )
            is_held |= bool(found)
            taken += self._claim([d for d in found.values() if is_waiting(d["_rev"])])
        following = self._next(_until(now))
        if is_held:
            again = now + HELD
            following = again if following is None else min(following, again)
        dues = [due for due in (following, self.due_at) if due is not None]
        self.due_at = min(dues, default=None)
        return taken

    def _begin(self) -> None:
        """Marks that are noted from now on lie behind what is read."""
        self.due_at = None

    def _claim(self, docs: Sequence[Document]) -> list[Claimed]:
        if not docs:
            return []
        ours = self._taking.take(docs)
        return [
            claim_of(doc, ours[doc["_id"]], doc["queue"])._replace(dead="expired")
            for doc in docs
            if doc["_id"] in ours
        ]

    def _next(self, start: str) -> float | None:
        rows = self._api.rows(Range(start, _END), limit=1)
        return _due(rows[0]["id"]) if rows else None


def _due(doc_id: str) -> float | None:
    millis = doc_id.split("!", 2)[1]
    return int(millis) / 1000 if millis.isdecimal() else None
