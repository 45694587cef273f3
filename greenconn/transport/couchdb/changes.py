"""The feed of changes: one connection per link that reports the changes of other processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import gevent

from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import spawn
from greenconn.transport.couchdb.api import CouchApi
from greenconn.transport.couchdb.errors import LinkLost, NotCouch

__all__ = ["ChangesFeed"]

#: For a lost feed, which goes on where it was: at once, after 0.2 and after 1 s.
FOLLOWING: Final = RetryPolicy(first=0.2, factor=5.0, longest=1.0, jitter=0.0, immediate=1, tries=4)
#: Heartbeats that may be missed, and after how many the server was stopped or out of reach.
MISSED: Final = 3
LATE: Final = 1.5


class ChangesFeed:
    """Follows the changes of one database until it is stopped.

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
        known = self._since

        def may_pass(exc: Exception) -> bool:
            if self._since != known:
                again.reset()  # it worked meanwhile
            return isinstance(exc, (OSError, LinkLost))

        again = attempts(FOLLOWING, NEVER, may_pass)
        try:
            for attempt in again:
                if attempt.error is not None:
                    self._on_gap()
                known = self._since
                with attempt:
                    while True:
                        self._follow()
                        self._on_gap()
        except Exception as exc:
            self._on_lost(exc)

    def _follow(self) -> None:
        """Follow one feed to its end."""
        beat = self._heartbeat
        with self._api.changes(self._since, beat, Deadline(MISSED * beat)) as lines:
            heard_at = monotonic()
            while (line := lines.line(Deadline(MISSED * beat))) is not None:
                before, heard_at = heard_at, monotonic()
                if heard_at - before > LATE * beat:
                    self._on_gap()
                if line and not self._take(line):
                    return

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
