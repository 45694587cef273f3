"""Making messages that wait ours, and which may be ours without our knowing.

A request may be done although its answer never comes.  What it took is in nobody's hands then, so it
is remembered here until the answer was used, for the next life of the connection to give it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from greenconn.broker.port import Claimed
from greenconn.transport.couchdb.api import CouchApi, Document
from greenconn.transport.couchdb.letters import UNKNOWN, Handle, claimed
from greenconn.transport.couchdb.names import name_of

__all__ = ["Taking"]


class Taking:
    """The claims of one link.

    Arguments:
        owner: names the link.
    """

    def __init__(self, api: CouchApi, owner: Callable[[], str]) -> None:
        self._api = api
        self._owner = owner
        #: Id -> who has it, perhaps.
        self._doubtful: dict[str, str] = {}

    def take(self, docs: Sequence[Document]) -> dict[str, Handle]:
        """Claim what was read, by id; others may be quicker.  May switch."""
        owner = self._owner()
        self._doubtful.update((doc["_id"], owner) for doc in docs)
        # Sent once: a conflict with ourselves would look as if others had been quicker.
        results = self._api.write([claimed(doc, owner) for doc in docs], may_repeat=False)
        ours: dict[str, Handle] = {}
        for doc, result in zip(docs, results, strict=True):
            if "rev" in result:
                ours[doc["_id"]] = (doc["_id"], result["rev"], owner)
            else:
                self._doubtful.pop(doc["_id"], None)
        return ours

    def handed_over(self, messages: Iterable[Claimed]) -> None:
        """Somebody has these now.  Never switches."""
        for each in messages:
            self._doubtful.pop(each.handle[0], None)

    def doubtful(self) -> list[tuple[str, Handle]]:
        """Return what claims without an answer may have taken: queue and handle.  Never switches."""
        return [
            (name_of(doc_id), (doc_id, UNKNOWN, owner)) for doc_id, owner in self._doubtful.items()
        ]
