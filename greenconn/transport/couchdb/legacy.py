"""Messages of kombu's former transport, converted since they have no position in the queue's order.

They are documents with ids of another kind, ``queue`` and ``payload``.  Who takes one over marks it
first, which only one can do, stores the message anew, and deletes it.
"""

from __future__ import annotations

from typing import Final

from greenconn.transport.couchdb.api import CouchApi
from greenconn.transport.couchdb.documents import (
    FOREIGN,
    FOREIGN_RANGE,
    OWNER,
    Document,
    claimed,
    is_message,
    message_id,
    name_of,
    range_of,
)

__all__ = ["LegacyMessages"]

#: Documents that are taken over at once.
BATCH: Final = 100


class LegacyMessages:
    """The messages of kombu's former transport in one database."""

    def __init__(self, api: CouchApi) -> None:
        self._api = api
        self._ids: set[str] = set()
        #: Those of a consumer that may have died.
        self._begun: set[str] = set()

    def load(self) -> None:
        """Find those that are there.  May switch."""
        for page in self._api.all_rows(FOREIGN_RANGE):
            for row in page:
                self.note(row["id"])

    def note(self, doc_id: str) -> bool:
        """Note a document in another format; return whether it may be a message.  Never switches."""
        if FOREIGN.fullmatch(doc_id) is None:
            return False
        self._ids.add(doc_id)
        return True

    def convert(self, owner: str) -> None:
        """Convert all that were found.  May switch, if there are some."""
        while self._ids:
            ids = [self._ids.pop() for _ in range(min(BATCH, len(self._ids)))]
            docs = [doc for doc in self._api.read(ids).values() if self._is_free(doc)]
            if docs:
                self._take(docs, owner)

    def retry(self) -> bool:
        """Look again at what a link that is gone may have begun with.  Never switches.

        Returns:
            Whether there is any.
        """
        begun, self._begun = self._begun, set()
        self._ids |= begun
        return bool(begun)

    def _is_free(self, doc: Document) -> bool:
        if is_message(doc):
            return True
        if not isinstance(doc.get("held"), str) or "queue" not in doc:
            return False
        # Was it claimed by a consumer that has died?
        self._begun.add(doc["_id"])
        if self._lives(str(doc.get("owner"))):
            return False
        self._begun.discard(doc["_id"])
        return True

    def _lives(self, owner: str) -> bool:
        return any(
            name_of(row["id"]) == owner
            for page in self._api.all_rows(range_of(OWNER))
            for row in page
        )

    def _take(self, docs: list[Document], owner: str) -> None:
        marks = [doc if "held" in doc else claimed(doc, owner) for doc in docs]
        results = self._api.write([{**mark, "owner": owner} for mark in marks], may_repeat=False)
        ours = [
            (mark, result["rev"])
            for mark, result in zip(marks, results, strict=True)
            if "rev" in result
        ]
        copies = [
            {
                "_id": message_id(mark["queue"], 0, 0, mark["_id"]),
                "queue": mark["queue"],
                "payload": mark["held"],
            }
            for mark, _ in ours
        ]
        self._api.write(copies)
        self._api.write([{"_id": mark["_id"], "_rev": rev, "_deleted": True} for mark, rev in ours])
