"""Claims of messages: claiming them, renewing the claims, and settling.

MongoDB changes one document as a whole, and many documents one by one.  So a claim of many looks for
candidates first, then updates those of them that still wait, each marked with the number of this
very claim; if another client was faster with some, it reads which ones it got.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import gevent
import pymongo
from bson import ObjectId
from pymongo import ASCENDING, ReplaceOne
from pymongo.errors import BulkWriteError, OperationFailure

from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.green.deadline import Deadline
from greenconn.transport.mongodb.client import Client, refusals_in
from greenconn.transport.mongodb.documents import (
    DEAD_AT,
    EXPIRE_AT,
    HELD_EXPIRE_AT,
    REDELIVERED,
    REQUEUE,
    Document,
    Handle,
    claim_update,
    claimed_of,
)

_ORDER: Final = [("priority", ASCENDING), ("_id", ASCENDING)]
#: Looks for candidates that one claim makes when some queues have more than is wanted of them.
_LOOKS: Final = 4
#: Expired messages that are taken at once.
_DEAD_LIMIT: Final = 100
#: Seconds to wait for the end of claims that no caller waits for.
ABANDONED_TIMEOUT: Final = 5.0
#: Seconds that giving that back may take; else the lease does it.
REQUEUE_TIMEOUT: Final = 0.5
#: Seconds that a request takes to the server which was sent before its connection was dropped.
ON_ITS_WAY: Final = 0.05


class Replacement(NamedTuple):
    """A message that is held, and the document that takes its place."""

    handle: Handle
    document: Document


class Claims:
    """The messages that one connection holds.

    Arguments:
        client: the servers.
        messages: the collection.
        lease: seconds that a claim lasts.
    """

    def __init__(self, client: Client, messages: Any, lease: float) -> None:
        self._client = client
        self._messages = messages
        self._lease = timedelta(seconds=lease)
        #: Key -> the claim by which it is held here: a message that came back and was taken again is
        #: not settled by the link that had it first.
        self._held: dict[Any, Handle] = {}
        #: Claims that have not returned to who made them.
        self._open: set[Any] = set()
        #: Claims that run, in whichever thread.
        self._running: set[Any] = set()

    # -- claiming

    def take(self, wanted: Mapping[str, int], limit: int) -> list[Claimed]:
        """Claim at most *limit* messages.  May switch."""
        if len(wanted) > 1:
            return self._call(self._take_of_many, wanted, limit)
        ((queue, count),) = wanted.items()
        if min(count, limit) == 1:
            return self._call(self._take_one, queue)
        return self._call(self._take_of_one, queue, min(count, limit))

    def take_dead(self) -> list[Claimed]:
        """Claim messages of any queue that have expired.  May switch."""
        return self._call(self._take_dead)

    def _call(self, function: Callable[..., list[Claimed]], *args: Any) -> list[Claimed]:
        claim = ObjectId()
        self._open.add(claim)
        try:
            found = self._client.call(self._run, function, claim, args)
        except OperationFailure:
            self._open.discard(claim)
            raise
        # If this greenlet was killed or its connection lost, the claim stays open: see abandon().
        self._open.discard(claim)
        for each in found:
            self._held[each.handle.id] = each.handle
        return found

    def abandon(self) -> set[Any]:
        """Stop waiting for claims, and return those whose messages will not be delivered."""
        return set(self._open)

    def wait_for_abandoned(self) -> None:
        """Wait until nothing more can be claimed.  May switch."""
        deadline = Deadline(ABANDONED_TIMEOUT)
        # One whose connection was cut may still be on its way.
        gevent.sleep(0.0 if self._running else ON_ITS_WAY)
        while self._running and not deadline.has_ended:
            gevent.sleep(0.01)

    def requeue(self, claims: Collection[Any]) -> None:
        """Requeue all that *claims* have taken.  May switch."""
        self._client.call(self._requeue, list(claims))

    # What runs in a thread, where there are threads, begins here.

    def _run(
        self, function: Callable[..., list[Claimed]], claim: Any, args: tuple[Any, ...]
    ) -> list[Claimed]:
        self._running.add(claim)
        try:
            return function(claim, *args)
        finally:
            self._running.discard(claim)

    def _requeue(self, claims: list[Any]) -> None:
        update = {**REQUEUE, "$inc": {"deliveries": -1}}
        mine = {"lease_until": {"$exists": True}, "claim": {"$in": claims}}
        with pymongo.timeout(REQUEUE_TIMEOUT):
            self._messages.update_many(mine, update)

    def _take_one(self, claim: Any, queue: str) -> list[Claimed]:
        now = self._client.now()
        found = self._messages.find_one_and_update(
            {"queue": queue}, claim_update(claim, now + self._lease), sort=_ORDER
        )
        return [] if found is None else [claimed_of(found, claim, queue, _dead(found, now))]

    def _take_of_one(self, claim: Any, queue: str, count: int) -> list[Claimed]:
        candidates = list(self._messages.find({"queue": queue}, sort=_ORDER, limit=count))
        return self._claim(claim, {"queue": queue}, candidates)

    def _take_of_many(self, claim: Any, wanted: Mapping[str, int], limit: int) -> list[Claimed]:
        ids = self._candidates(wanted, limit)
        if not ids:
            return []
        now = self._client.now()
        mine = {"_id": {"$in": ids}, "queue": {"$in": list(wanted)}}
        self._messages.update_many(mine, claim_update(claim, now + self._lease))
        found = self._messages.find({"_id": {"$in": ids}, "claim": claim}, sort=_ORDER)
        return [
            claimed_of(each, claim, each["claimed"], _dead(each, now), counted=1) for each in found
        ]

    def _candidates(self, wanted: Mapping[str, int], limit: int) -> list[Any]:
        """Keys of messages, of each queue as many as are wanted, if there are."""
        room = dict(wanted)
        chosen: dict[Any, None] = {}
        for _ in range(_LOOKS):
            # Without their bodies: there may be more than are wanted.
            found = list(
                self._messages.find(
                    {"queue": {"$in": list(room)}}, {"queue": 1}, sort=_ORDER, limit=limit
                )
            )
            for each in found:
                queue, key = each["queue"], each["_id"]
                if room.get(queue) and key not in chosen and len(chosen) < limit:
                    room[queue] -= 1
                    chosen[key] = None
            room = {queue: count for queue, count in room.items() if count}
            if len(found) < limit or not room or len(chosen) >= limit:
                break
        return list(chosen)

    def _take_dead(self, claim: Any) -> list[Claimed]:
        now = self._client.now()
        found: list[Document] = []
        for name in (DEAD_AT, EXPIRE_AT):
            late = {name: {"$lte": now}, "queue": {"$exists": True}}
            found += self._messages.find(late, limit=_DEAD_LIMIT)
        return self._claim(claim, {"queue": {"$exists": True}}, found)

    def _claim(self, claim: Any, waiting: Document, candidates: list[Document]) -> list[Claimed]:
        """Claim those of *candidates* that still wait."""
        if not candidates:
            return []
        now = self._client.now()
        keys = {"$in": [each["_id"] for each in candidates]}
        result = self._messages.update_many(
            {"_id": keys, **waiting}, claim_update(claim, now + self._lease)
        )
        if result.modified_count != len(candidates):
            mine = self._messages.find({"_id": keys, "claim": claim}, {"_id": 1})
            won = {each["_id"] for each in mine}
            candidates = [each for each in candidates if each["_id"] in won]
        return [claimed_of(each, claim, each["queue"], _dead(each, now)) for each in candidates]

    # -- settling

    def is_mine(self, handle: Handle) -> bool:
        """Return whether a message is held by that claim, as far as is known here.

        What a former connection of this process has claimed is not known, and may be.
        """
        return self._held.get(handle.id, handle) == handle

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        """Say what became of messages.  May switch."""
        valid = [each for each in requests if self.is_mine(each.handle)]
        self._client.call(self._settle, valid)
        for each in valid:
            self._held.pop(each.handle.id, None)

    def _settle(self, requests: list[SettleRequest]) -> None:
        gone = [each.handle for each in requests if each.settlement is not Settlement.REQUEUE]
        if gone:
            self._messages.delete_many(_held_by(gone))
        returned: dict[tuple[float, bool, bool], list[Handle]] = {}
        for each in requests:
            if each.settlement is Settlement.REQUEUE:
                how = (each.delay, each.is_unseen, each.is_unhandled)
                returned.setdefault(how, []).append(each.handle)
        for how, handles in returned.items():
            self._messages.update_many(_held_by(handles), self._back(*how))

    def _back(self, delay: float, is_unseen: bool, is_unhandled: bool) -> Document:
        noted: Document = {REDELIVERED: True} if is_unhandled else {}
        if delay > 0:
            noted["due_at"] = self._client.now() + timedelta(seconds=delay)
            taken = {"claim": "", "lease_until": ""}
            update: Document = {"$unset": taken}
        else:
            update = dict(REQUEUE)
        if noted:
            update["$set"] = noted
        if is_unseen or is_unhandled:
            update["$inc"] = {"deliveries": -1}
        return update

    def replace(self, places: Sequence[Replacement]) -> Mapping[int, Exception]:
        """Put documents in the places of messages; return, by number, why some were not.  May switch.

        One that is not held any more is passed over.
        """
        valid = [number for number, each in enumerate(places) if self.is_mine(each.handle)]
        if not valid:
            return {}
        refused = self._client.call(self._replace, [places[number] for number in valid])
        found = {valid[at]: error for at, error in refused.items()}
        for number in valid:
            if number not in found:
                self._held.pop(places[number].handle.id, None)
        return found

    def _replace(self, places: Sequence[Replacement]) -> dict[int, Exception]:
        requests = []
        for handle, document in places:
            # Its key stays: a message is replaced in one step, and keeps its age.
            document.pop("_id", None)
            requests.append(ReplaceOne({"_id": handle.id, "claim": handle.claim}, document))
        try:
            self._messages.bulk_write(requests, ordered=False)
        except BulkWriteError as exc:
            return refusals_in(exc)
        return {}

    # -- keeping

    def renew(self, handles: Sequence[Handle]) -> list[Handle]:
        """Begin leases anew; return those that were lost.  May switch."""
        mine = [each for each in handles if self.is_mine(each)]
        left = self._client.call(self._renew, mine) if mine else set()
        lost = [each for each in handles if each.id not in left or not self.is_mine(each)]
        for each in lost:
            if self._held.get(each.id) == each:
                del self._held[each.id]
        return lost

    def _renew(self, handles: list[Handle]) -> set[Any]:
        held = _held_by(handles)
        until = self._client.now() + self._lease
        result = self._messages.update_many(held, {"$set": {"lease_until": until}})
        if result.matched_count == len(handles):
            return {each.id for each in handles}
        return {each["_id"] for each in self._messages.find(held, {"_id": 1})}

    def requeue_due(self) -> float | None:
        """Requeue messages whose lease or delay has ended.  May switch.

        Returns:
            in how many seconds something else is due: a message that is delayed, or that expires.
        """
        due: float | None = self._client.call(self._requeue_due)
        return due

    def _requeue_due(self) -> float | None:
        now = self._client.now()
        late = {"$lte": now}
        either = {"$or": [{"lease_until": late}, {"due_at": late}]}
        self._messages.update_many(either, REQUEUE)
        ends = []
        for name in ("due_at", DEAD_AT):
            later = {name: {"$gt": now}}
            first = self._messages.find_one(later, {name: 1}, sort=[(name, ASCENDING)])
            if first is not None:
                ends.append(first[name])
        return (min(ends) - now).total_seconds() if ends else None


def _held_by(handles: Sequence[Handle]) -> Document:
    return {
        "_id": {"$in": [each.id for each in handles]},
        "claim": {"$in": list({each.claim for each in handles})},
    }


def _dead(document: Document, now: datetime) -> str | None:
    """Why a message is not delivered, if it is not."""
    for name in (DEAD_AT, EXPIRE_AT, HELD_EXPIRE_AT):
        end = document.get(name)
        if isinstance(end, datetime) and end <= now:
            return "expired"
    return None
