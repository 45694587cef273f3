"""Claims: reading waiting messages, and claiming each by the next revision of its document.

Of all links that try the same document the server accepts one and reports a conflict to the others.  A
conflict costs nothing but the attempt: the changes feed tells what becomes of the message.

Waiting messages
    The ids of a queue sort as its messages are to be delivered, and new ones mostly come behind those
    that are there.  So the queue is read once, page by page, up to a *place*.  What waits in front of
    it and was passed over is known by its id: it was requeued, has a higher priority, or will be due
    later.  The feed of changes brings what is new on either side of the place.  While a read is on its
    way, its reply and the feed may overtake each other: what the feed says meanwhile is kept until the
    reply was used, and what is newer than the reply wins.

Expiry
    ``gcy!milliseconds!message``, a mark, is stored together with a message that has a time to live.  It
    sorts by the time, so that no query searches for expired messages.  It is deleted when its time has
    come and the message is gone.  Each claim also takes expired messages, of any queue, and makes dead
    letters of them.

Claims in doubt
    A request may be done although its reply never comes.  The messages that it claimed are remembered
    until the reply was used, for the next life of the connection to release them.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub
from gevent.lock import BoundedSemaphore
from msgspec.structs import replace

from greenconn.broker.port import Claimed
from greenconn.green.hub import weakly
from greenconn.transport.couchdb.api import (
    MARK,
    MESSAGE,
    UNKNOWN,
    CouchApi,
    Document,
    Handle,
    Range,
    claim_of,
    claimed,
    deleted,
    due_at,
    generation,
    is_waiting,
    name_of,
    range_of,
)

if TYPE_CHECKING:
    from greenconn.transport.couchdb import Owners

#: Ids in front of the place that are remembered; with more the queue is read anew from the first.
REMEMBERED: Final = 2000


class PendingIndex:
    """The index of one queue.  Nothing here switches."""

    def __init__(self, queue: str) -> None:
        self._all = range_of(MESSAGE, queue)
        self._place = self._all.start
        #: No message comes after the place.
        self.is_done = False
        #: What lies behind the place is held, most likely.
        self.is_sparse = False
        #: In front of the place, and may wait.
        self._returned: set[str] = set()
        #: When it is due, and the id.
        self._later: list[tuple[float, str]] = []
        #: While a read is on its way: id -> the newest generation that the feed has shown.
        self._meanwhile: dict[str, int] | None = None

    @property
    def rest(self) -> Range:
        """The range that was not read yet."""
        return self._all._replace(start=self._place)

    @property
    def may_have_messages(self) -> bool:
        """Whether messages may wait."""
        return bool(self._returned) or not self.is_done

    @property
    def next_due(self) -> float | None:
        """When the next message is due that was read too early; None: there is none."""
        return self._later[0][0] if self._later else None

    def start_over(self, is_sparse: bool = False) -> None:
        """Read the queue from its first message.

        Arguments:
            is_sparse: most of what is there is held, most likely.
        """
        self.is_sparse = is_sparse
        self._place = self._all.start
        self.is_done = False
        self._returned.clear()
        self._later.clear()

    def note(self, doc_id: str, revision: str) -> bool:
        """Note a message of that revision; return whether it waits."""
        if self._meanwhile is not None:
            self._meanwhile[doc_id] = generation(revision)
        if not is_waiting(revision):
            self._returned.discard(doc_id)
            return False
        if doc_id >= self._place:
            if not self.is_done:
                return True  # it will be read
            self._place = doc_id + "\0"  # nothing else lies before it, or the feed will tell
        self._return(doc_id)
        return True

    def forget(self, doc_id: str) -> None:
        """Forget a message."""
        self._returned.discard(doc_id)

    def take_returned(self, limit: int) -> list[str]:
        """Return the first ids in front of the place; they are read now."""
        ids = sorted(self._returned)[:limit]
        self._returned.difference_update(ids)
        return ids

    def watch(self) -> None:
        """Note that a read begins."""
        self._meanwhile = {}

    def passed(self, ids: Iterable[str], is_last: bool) -> None:
        """Note that all up to the last of *ids* was read; *is_last*: there were no more."""
        for doc_id in ids:
            self._place = max(self._place, doc_id + "\0")
        self.is_done = is_last
        # What came in the meantime lay behind the place then.
        for doc_id, number in (self._meanwhile or {}).items():
            if number % 2 and doc_id >= self._place:
                self.is_done = False

    def used(self, known: dict[str, int]) -> None:
        """Note that what was read was used; *known*: id -> generation that it had, or has by now."""
        meanwhile, self._meanwhile = self._meanwhile or {}, None
        for doc_id, number in meanwhile.items():
            if number % 2 and number > known.get(doc_id, 0) and doc_id < self._place:
                self._return(doc_id)

    def delay(self, doc_id: str, due_at: float) -> None:
        """Note a message that is due later."""
        heappush(self._later, (due_at, doc_id))

    def due(self, now: float) -> None:
        """Bring forward what is due."""
        while self._later and self._later[0][0] <= now:
            self._return(heappop(self._later)[1])

    def _return(self, doc_id: str) -> None:
        self._returned.add(doc_id)
        if len(self._returned) > REMEMBERED:
            self._place = min(self._returned)
            self._returned.clear()
            self.is_done = False


_FIRST: Final = f"{MARK}!"
_END: Final = f'{MARK}"'

#: Seconds after which an expired message that is claimed is checked again.
HELD: Final = 1.0


def mark_of(doc: Document) -> Document | None:
    """Return the mark of a message; None: it does not expire."""
    expires = doc.get("expires_at")
    return None if expires is None else {"_id": f"{_until(expires)}!{doc['_id']}"}


def _until(seconds: float) -> str:
    return f"{_FIRST}{int(seconds * 1000) + 1:015}"


def _due(doc_id: str) -> float | None:
    millis = doc_id.split("!", 2)[1]
    return int(millis) / 1000 if millis.isdecimal() else None


#: Documents that are read at once: at first, and at most where they are small.
FIRST: Final = 16
LARGEST: Final = 100
#: Bytes of messages that should be read at once at most.
HEAVY: Final = 2 * 1024 * 1024
#: Ids of one queue that are read as a range.
MANY: Final = 5
#: Seconds at least between two looks for what is due.
LEAST: Final = 0.01


class Claims:
    """The claims of one link, and the expiry of messages in its database.

    Arguments:
        owners: names the link.
        wake: says that a queue, or None for any, may have messages.  Never switches.
    """

    def __init__(self, api: CouchApi, owners: Owners, wake: Callable[[str | None], None]) -> None:
        self._api = api
        self._owners = owners
        self._wake = wake
        #: When the next message expires, in seconds since 1970; None: none is known.
        self._expires_at: float | None = None
        #: Id -> the owner that has claimed it, perhaps: no reply was used yet.
        self._unconfirmed: dict[str, str] = {}
        self._pending: dict[str, PendingIndex] = {}
        #: Rings when something is due.
        self._timer: Any = None
        #: One greenlet at a time reads and claims, since a pending knows one read at a time.
        self._busy = BoundedSemaphore()
        #: Documents that are read at once; fewer where they are large.
        self._page = FIRST

    def load(self) -> None:
        """Find the first message that expires.  May switch."""
        self._expires_at = self._first_expiry(_FIRST)

    # -- what others say; nothing here switches

    def note(self, doc_id: str, revision: str, is_deleted: bool) -> None:
        """Note a changed message."""
        queue = name_of(doc_id)
        pending = self._pending.get(queue)
        if pending is None:
            return
        if is_deleted:
            pending.forget(doc_id)
        elif pending.note(doc_id, revision):
            self._wake(queue)

    def note_mark(self, doc_id: str) -> None:
        """Note a message that expires."""
        due = _due(doc_id)
        if due is not None and (self._expires_at is None or due < self._expires_at):
            self._expires_at = due
            self._set_timer()

    def forget(self, queue: str) -> None:
        """Forget a queue that was deleted or must be read anew."""
        self._pending.pop(queue, None)

    def stop(self) -> None:
        """Stop waking consumers."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _set_timer(self) -> None:
        """Have the next message that is due looked at in time."""
        self.stop()
        now = time.time()
        dues = [pending.next_due for pending in self._pending.values()]
        dues += [self._expires_at]
        known = [due for due in dues if due is not None]
        if known:
            self._timer = get_hub().loop.timer(max(min(known) - now, LEAST), ref=False)
            self._timer.start(weakly(self._on_time))

    def _on_time(self) -> None:
        # In the hub.
        self.stop()
        now = time.time()
        if self._has_expired:
            self._wake(None)
            return
        for queue, pending in self._pending.items():
            if pending.next_due is not None and pending.next_due <= now:
                self._wake(queue)

    # -- claiming

    def claim(self, wanted: Mapping[str, int]) -> list[Claimed]:
        """Claim messages; see the store.  May switch."""
        with self._busy:
            dead = self._take_expired() if self._has_expired else []
            try:
                found = self._find(wanted)
            except Exception:
                if not dead:
                    raise
                found = []  # the next claim gets the same error
            self._set_timer()
        found = dead + found
        for message in found:  # they are handed over: their claims are certain
            self._unconfirmed.pop(message.handle[0], None)
        return found

    def unconfirmed_claims(self) -> list[tuple[str, Handle]]:
        """Return what claims without a reply may have taken: queue and handle.  Never switches."""
        return [
            (name_of(doc_id), (doc_id, UNKNOWN, owner))
            for doc_id, owner in self._unconfirmed.items()
        ]

    def _write(self, docs: Sequence[Document]) -> dict[str, Handle]:
        """Claim what was read, by id; others may be quicker.  May switch."""
        owner = self._owners.token
        self._unconfirmed.update((doc["_id"], owner) for doc in docs)
        # Sent once: a conflict with ourselves would look as if others had been quicker.
        results = self._api.write([claimed(doc, owner) for doc in docs], may_repeat=False)
        ours: dict[str, Handle] = {}
        for doc, result in zip(docs, results, strict=True):
            if "rev" in result:
                ours[doc["_id"]] = (doc["_id"], result["rev"], owner)
            else:
                self._unconfirmed.pop(doc["_id"], None)
        return ours

    def _find(self, wanted: Mapping[str, int]) -> list[Claimed]:
        found = self._try(wanted)
        if not found and len(wanted) == 1:
            # The feed may not have reported yet what is there, and a get must know.
            for queue in wanted:
                self._pending_of(queue).start_over(is_sparse=True)
            found = self._try(wanted)
        return found

    def _pending_of(self, queue: str) -> PendingIndex:
        pending = self._pending.get(queue)
        if pending is None:
            pending = self._pending[queue] = PendingIndex(queue)
        return pending

    def _try(self, wanted: Mapping[str, int]) -> list[Claimed]:
        left = dict(wanted)
        taken: list[Claimed] = []
        while left:
            try:
                seen = self._read_waiting(left)
                for queue, each in self._take(seen):
                    taken.append(each)
                    left[queue] -= each.dead is None
            except BaseException as exc:
                # What was passed over must be found again.
                for queue in left:
                    self._pending_of(queue).start_over()
                    self._pending_of(queue).used({})
                if taken and isinstance(exc, Exception):
                    return taken  # the next claim gets the same error
                raise
            left = {queue: most for queue, most in left.items() if most > 0 and seen[queue]}
        return taken

    def _read_waiting(self, wanted: Mapping[str, int]) -> dict[str, list[Document]]:
        """Read messages that may be claimed now, of each queue no more than are wanted."""
        while True:
            for queue in wanted:
                self._pending_of(queue).watch()
            try:
                return self._read(wanted, time.time())
            except OSError as exc:
                if exc.errno != errno.EMSGSIZE or self._page == 1:
                    raise
                self._page = max(1, self._page // 4)
                for queue in wanted:
                    self._pending_of(queue).start_over()

    def _read(self, wanted: Mapping[str, int], now: float) -> dict[str, list[Document]]:
        returned = {}
        for queue, most in wanted.items():
            pending = self._pending_of(queue)
            pending.due(now)
            returned[queue] = pending.take_returned(min(most, self._page))
        # Those of all queues together.
        known = self._known([doc_id for ids in returned.values() for doc_id in ids])
        seen: dict[str, list[Document]] = {}
        for queue, most in wanted.items():
            pending, limit = self._pending_of(queue), min(most, self._page)
            docs = [known[doc_id] for doc_id in returned[queue] if doc_id in known]
            ready = self._due(pending, docs, now)
            while not ready and pending.may_have_messages:
                ids = pending.take_returned(limit)
                docs = list(self._known(ids).values()) if ids else self._next(pending, limit)
                ready = self._due(pending, docs, now)
            seen[queue] = ready
            if not ready:
                pending.used({})
        self._adapt(seen)
        return seen

    def _adapt(self, seen: Mapping[str, list[Document]]) -> None:
        """Read fewer at a time if messages are large, since decoding JSON blocks the hub."""
        size = sum(len(str(doc.get("payload"))) for docs in seen.values() for doc in docs)
        if size > HEAVY:
            self._page = max(1, self._page // 2)
        elif size < HEAVY // 8:
            self._page = min(LARGEST, self._page * 2)

    def _known(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return those of *ids*, which are sorted for each queue, that wait, in their order."""
        if not ids:
            return {}
        found: dict[str, Document] = {}
        if len(ids) >= MANY and name_of(ids[0]) == name_of(ids[-1]):
            # They lie side by side, most likely: a range is cheaper than as many ids.
            rows = self._api.rows(Range(ids[0], ids[-1] + "\0"), 2 * len(ids), has_docs=True)
            found = {row["id"]: row["doc"] for row in rows if row.get("doc")}
            last = rows[-1]["id"] if len(rows) == 2 * len(ids) else ids[-1]
            rest = [doc_id for doc_id in ids if doc_id > last]
        else:
            rest = list(ids)
        if rest:
            found.update(self._api.read(rest))
        docs = {doc_id: found[doc_id] for doc_id in ids if doc_id in found}
        return {doc_id: doc for doc_id, doc in docs.items() if is_waiting(doc["_rev"])}

    def _next(self, pending: PendingIndex, limit: int) -> list[Document]:
        """Read on behind the place."""
        if pending.is_sparse:
            self._pass_held(pending)
            if pending.is_done:
                return []
        rows = self._api.rows(pending.rest, limit, has_docs=True)
        pending.passed([row["id"] for row in rows], is_last=len(rows) < limit)
        waiting = [row["doc"] for row in rows if is_waiting(row["value"]["rev"]) and row["doc"]]
        pending.is_sparse = not waiting and not pending.is_done
        return waiting

    def _pass_held(self, pending: PendingIndex) -> None:
        """Go on to the next message that waits, without reading what is held."""
        pending.is_sparse = False
        for page in self._api.all_rows(pending.rest):
            held = [row["id"] for row in page]
            for number, row in enumerate(page):
                if is_waiting(row["value"]["rev"]):
                    pending.passed(held[:number], is_last=False)
                    return
            pending.passed(held, is_last=False)
        pending.passed((), is_last=True)

    def _due(self, pending: PendingIndex, docs: Sequence[Document], now: float) -> list[Document]:
        ready = []
        for doc in docs:
            due = due_at(doc)
            if due > now:
                pending.delay(doc["_id"], due)
            else:
                ready.append(doc)
        return ready

    def _take(self, seen: Mapping[str, list[Document]]) -> list[tuple[str, Claimed]]:
        """Claim what was read; others may be quicker."""
        docs = [(queue, doc) for queue, docs in seen.items() for doc in docs]
        if not docs:
            return []
        handles = self._write([doc for _, doc in docs])
        known: dict[str, int] = {}
        ours: list[tuple[str, Claimed]] = []
        for queue, doc in docs:
            handle = handles.get(doc["_id"])
            known[doc["_id"]] = generation(doc["_rev"]) + (handle is not None)
            if handle is not None:
                ours.append((queue, claim_of(doc, handle, queue)))
        for queue, of_queue in seen.items():
            if of_queue:
                self._pending_of(queue).used(known)
        return ours

    # -- expiry

    @property
    def _has_expired(self) -> bool:
        """Whether a message has expired."""
        return self._expires_at is not None and self._expires_at <= time.time()

    def expired(self) -> set[str]:
        """Return the ids of all expired messages, some of which are gone.  May switch, if any."""
        if not self._has_expired:
            return set()
        pages = self._api.all_rows(Range(_FIRST, _until(time.time())))
        return {row["id"].split("!", 2)[2] for page in pages for row in page}

    def _take_expired(self) -> list[Claimed]:
        """Claim what has expired and waits.  May switch."""
        now = time.time()
        self._expires_at = None  # marks that are noted from now on lie behind what is read
        taken: list[Claimed] = []
        is_held = False
        for page in self._api.all_rows(Range(_FIRST, _until(now))):
            marks = {row["id"].split("!", 2)[2]: row for row in page}
            found = self._api.read(list(marks))
            idle = [row for doc_id, row in marks.items() if doc_id not in found]
            if idle:
                self._api.write([deleted(row["id"], row["value"]["rev"]) for row in idle])
            is_held |= bool(found)
            docs = [doc for doc in found.values() if is_waiting(doc["_rev"])]
            handles = self._write(docs) if docs else {}
            taken += [
                replace(claim_of(doc, handles[doc["_id"]], doc["queue"]), dead="expired")
                for doc in docs
                if doc["_id"] in handles
            ]
        following = self._first_expiry(_until(now))
        if is_held:
            again = now + HELD
            following = again if following is None else min(following, again)
        dues = [due for due in (following, self._expires_at) if due is not None]
        self._expires_at = min(dues, default=None)
        return taken

    def _first_expiry(self, start: str) -> float | None:
        rows = self._api.rows(Range(start, _END), limit=1)
        return _due(rows[0]["id"]) if rows else None
