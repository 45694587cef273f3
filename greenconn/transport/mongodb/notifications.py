"""Notifications claims that found no message, when one is published.

A member of a replica set tells of changes (a *change stream*), as long as we want to know: while the
queues are empty.  A lone server cannot; there we look again, after 10 ms, then less and less often,
up to once a second, and at once again when there was something.  On both, what leases and delays have
brought back is looked for once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Final

import gevent
from gevent.event import Event
from pymongo.errors import OperationFailure, PyMongoError

from greenconn.green.supervisor import OnDemand, spawn
from greenconn.transport.mongodb.client import Client, LinkLost, LoginRefused, TailCursor

logger = logging.getLogger("greenconn.transport.mongodb")

#: Seconds between two looks: at first, and in the end.
SHORTEST: Final = 0.01
LONGEST: Final = 1.0
#: The same while the server tells of changes.
WATCHED: Final = 5.0
#: Seconds between two looks for what came back by itself.
SWEEP_INTERVAL: Final = 1.0
#: Seconds of work without a pause after which changes are not of interest any more.
BUSY: Final = 2.0
#: Number of polls without a claim in between after which polling ends.
IN_VAIN: Final = 3
#: What clients of this server have been told once.
_LOGGED: Final = "logged that it is polled"

_STREAM: Final = [
    {"$changeStream": {}},
    # What waits now: new, or back.
    {
        "$match": {
            "$or": [
                {"operationType": {"$in": ["insert", "replace"]}},
                {"updateDescription.updatedFields.queue": {"$exists": True}},
            ]
        }
    },
    # Nothing of the messages themselves.
    {"$project": {"new": "$fullDocument.queue", "back": "$updateDescription.updatedFields.queue"}},
]


class Notifications:
    """Wakes the consumers of one connection.

    Arguments:
        client: the servers.
        collection: the name of the collection of messages.
        interval: seconds between two polls; None adapts.
        wake: has a consumed queue claimed from, or all for None.  Never switches.
        sweep: requeues messages whose lease is not renewed or whose delay is over, takes what has
            expired if its argument says that claims are made here, and returns the seconds until
            something else is due; None where nothing is known to be.  May switch.
    """

    def __init__(
        self,
        client: Client,
        collection: str,
        interval: float | None,
        wake: Callable[[str | None], None],
        sweep: Callable[[bool], float | None],
    ) -> None:
        self._client = client
        self._collection = collection
        self._interval = interval
        self._wake = wake
        self._sweep = sweep
        self._pause = SHORTEST
        self._wanted = Event()
        self._empty_polls = 0
        self._polling = OnDemand("mongodb notifications", self._poll)
        self._streaming = OnDemand("mongodb changes", self._watch)
        self._is_streaming = False
        self._is_stopped = False
        self._can_stream = client.is_set
        #: When queues were last seen empty.
        self._empty_at = monotonic()
        #: When something is due that is known here; it may be past.
        self._due_at = inf

    def note_claim(self, count: int, wanted: int) -> None:
        """Note that a claim found *count* of *wanted* messages.  Never switches."""
        self._empty_polls = 0
        if count:
            self._pause = SHORTEST
        if count < wanted:
            self._empty_at = monotonic()
        if self._is_stopped:
            return
        self._polling.start()
        if self._can_stream and not count:
            self._streaming.start()

    def expect(self, seconds: float) -> None:
        """Something is due in so many seconds.  Never switches."""
        at = monotonic() + seconds
        if at < self._due_at:
            self._due_at = at
            self._wanted.set()
        if not self._is_stopped:
            self._polling.start()

    def stop(self) -> None:
        """Stop.  Never switches."""
        self._is_stopped = True
        self._polling.end()
        self._streaming.end()

    def _next_pause(self) -> float:
        pause = self._interval
        if pause is None:
            pause = WATCHED if self._is_streaming else self._pause
            self._pause = min(self._pause * 2, LONGEST)
        return min(pause, SWEEP_INTERVAL, max(0.0, self._due_at - monotonic()))

    def _poll(self) -> None:
        swept_at = woken_at = monotonic()
        while self._empty_polls < IN_VAIN or self._due_at < inf:
            pause = self._next_pause()
            self._wanted.clear()
            if self._wanted.wait(pause):
                continue  # something is due earlier
            now = monotonic()
            if now >= self._due_at or now - swept_at >= SWEEP_INTERVAL:
                swept_at = now
                self._due_at = inf  # the sweep says what is due next
                self._sweep_late()
            if not self._is_streaming or now - woken_at >= WATCHED:
                woken_at = now
                self._empty_polls += 1
                self._wake(None)

    def _sweep_late(self) -> None:
        try:
            due = self._sweep(self._empty_polls < IN_VAIN)
        except (LinkLost, PyMongoError) as exc:
            # The next claim meets the same, and ends the connection if it must.
            logger.debug(
                "%s: polling: %s", self._client.where, exc, extra={"connection": self._client.where}
            )
            self._wake(None)
            return
        if due is not None:
            self.expect(due)

    # -- change streams

    def _watch(self) -> None:
        try:
            self._follow()
        except (OperationFailure, LoginRefused) as exc:
            self._can_stream = False
            self._log(f"does not permit a change stream ({exc})")
        except (LinkLost, PyMongoError) as exc:
            logger.debug(
                "%s: change stream: %s",
                self._client.where,
                exc,
                extra={"connection": self._client.where},
            )
            gevent.sleep(LONGEST)
        finally:
            self._is_streaming = False
            self._pause = SHORTEST

    def _follow(self) -> None:
        reading = TailCursor(self._client, self._collection)
        try:
            command = {"aggregate": self._collection, "pipeline": _STREAM, "cursor": {}}
            found = reading.open(command)
            self._is_streaming = True
            self._wake(None)  # what came before it was open
            while reading.is_alive and monotonic() - self._empty_at < max(BUSY, WATCHED * 2):
                for queue in {each.get("new") or each.get("back") for each in found}:
                    if isinstance(queue, str):
                        self._wake(queue)
                found = reading.more()
        finally:
            spawn("mongodb changes end", reading.close)

    def log_polling(self) -> None:
        """Say once that the server cannot tell of changes.  Never switches."""
        if not self._can_stream:
            self._log("is no member of a replica set and has no change streams")

    def _log(self, why: str) -> None:
        if _LOGGED not in self._client.notes:
            self._client.notes[_LOGGED] = True
            pause = "up to 1 s" if self._interval is None else f"{self._interval:g} s"
            logger.info(
                "%s %s: empty queues are polled every %s (polling_interval)",
                self._client.where,
                why,
                pause,
                extra={"connection": self._client.where},
            )
