"""Owners: each link renews a document of its own, its heartbeat, and all check those of the others.

No clock is compared with another.  A link measures by its own how long the sign of life of another one
has not changed; time in which it could not hear anything does not count.  Who finds one silent for its
lease marks its document, which only one can do, requeues what it held, deletes its exclusive queues,
and deletes the document.

Many links lose one server at the same time, and so do those who look for the dead find them at the same
time.  Each waits a little first, of a length of its own, and the first one does it for all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Final

from gevent import sleep
from gevent.lock import BoundedSemaphore

from greenconn.broker.port import LeaseExpired
from greenconn.transport.couchdb.api import CouchApi
from greenconn.transport.couchdb.documents import (
    MESSAGE,
    OWNER,
    Document,
    is_waiting,
    name_of,
    named,
    range_of,
    released,
)

#: Documents that are read at once while messages are requeued; links that are swept at once.
BATCH: Final = 100
#: Parts of a lease that one waits at most for others to sweep.
SWEEP_DELAY: Final = 1 / 6


class Owners:
    """The heartbeats of the links to one database.

    Arguments:
        lease: seconds.
        link: names this link in its exclusive queues.
        drop_queues: called with such names of links that are dead; deletes their queues.  May switch.

    Attributes:
        token: names this link in what it holds; another one after it was taken for dead.
    """

    def __init__(
        self,
        api: CouchApi,
        lease: float,
        link: Callable[[], str],
        drop_queues: Callable[[Collection[str]], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._api = api
        self._lease = lease
        self._link = link
        self._drop_queues = drop_queues
        #: This link has, or had, exclusive queues.
        self.has_queues = False
        self._clock = clock
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
        return self._clock() - self._beat_at > self._lease / 6

    def begin(self) -> None:
        """Store the first heartbeat.  May switch."""
        self.token = os.urandom(8).hex()
        self._revision = self._api.put(self._sign()) or ""
        self._beat_at = self._clock()

    def _sign(self) -> Document:
        return {"_id": self._id, "link": self._link()}

    def end(self) -> None:
        """Delete this link's document, after everything was requeued.  May switch."""
        self._api.write([{"_id": self._id, "_rev": self._revision, "_deleted": True}])

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
        return self._clock() - self._beat_at > 2 / 3 * self._lease

    def _beat(self) -> None:
        if self._is_late:
            self.note_gap()  # this process was stopped: it has not heard the others either
        self._beat_at = self._clock()
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
            self._seen[doc_id] = (revision, self._clock())

    def note_gap(self) -> None:
        """Nothing could be heard for a while: the time of the others begins anew.  Never switches."""
        now = self._clock()
        self._seen = {doc_id: (revision, now) for doc_id, (revision, _) in self._seen.items()}

    def sweep(self) -> int:
        """Requeue what dead links hold; return the number of messages.  May switch."""
        if not self._silent():
            return 0
        sleep(random.uniform(0, SWEEP_DELAY) * self._lease)
        marks: list[Document] = []
        for doc_id, revision in self._silent()[:BATCH]:
            self._seen[doc_id] = (revision, self._clock())
            marks.append({"_id": doc_id, "_rev": revision, "swept": self.token})
        if not marks:
            return 0
        links = self._links(marks)
        for mark in marks:
            mark["link"] = links.get(mark["_id"])  # for who comes, if this process ends here
        # A conflict: it is alive, or another process was faster.
        ours = [each for each in self._api.write(marks) if "rev" in each]
        if not ours:
            return 0
        count = self._requeue({name_of(each["id"]) for each in ours})
        self._drop_queues({links[each["id"]] for each in ours if each["id"] in links})
        self._api.write(
            [{"_id": each["id"], "_rev": each["rev"], "_deleted": True} for each in ours]
        )
        for each in ours:
            self._seen.pop(each["id"], None)
        return count

    def _links(self, marks: Sequence[Document]) -> dict[str, str]:
        """Return the links of documents that are to be marked, by the ids of those."""
        found = self._api.read([each["_id"] for each in marks])
        return {
            doc_id: doc["link"] for doc_id, doc in found.items() if isinstance(doc.get("link"), str)
        }

    def _silent(self) -> list[tuple[str, str]]:
        """Return those that were silent for their lease, and their revisions.  Never switches."""
        now = self._clock()
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
