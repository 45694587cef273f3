"""Settlements of claimed messages: functions that run in a transaction."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from greenconn.broker.port import Answer, NoQueue, Settlement
from greenconn.transport.sqlite.arming import armed
from greenconn.transport.sqlite.lists import chunks, in_list
from greenconn.transport.sqlite.messages import (
    DELAYED,
    READY,
    Claim,
    Handle,
    Put,
    earliest,
    put,
)
from greenconn.transport.sqlite.queues import Queues

__all__ = ["renew", "settle"]


def settle(db: sqlite3.Connection, queues: Queues, answers: Sequence[Answer], claim: Claim) -> Put:
    """Settle what is held; what is not held any more stays as it is."""
    gone: list[Handle] = []
    back: defaultdict[tuple[float, bool], list[Handle]] = defaultdict(list)
    buried: list[Answer] = []
    for answer in answers:
        if answer.settlement is Settlement.BACK:
            back[answer.delay, answer.is_unseen].append(answer.handle)
        elif answer.entries and _holds(db, answer.handle):
            buried.append(answer)
        else:
            gone.append(answer.handle)
    entries = [entry for answer in buried for entry in answer.entries]
    stored = put(db, queues, entries, claim) if entries else Put([], {}, [], None)
    outcomes = iter(stored.outcomes)
    refused: list[tuple[str, Exception]] = []
    for answer in buried:
        refusals = [
            (entry.queue, error)
            for entry, error in zip(answer.entries, outcomes, strict=False)
            if error is not None and not isinstance(error, NoQueue)
        ]
        refused += refusals[:1]
        if refusals:
            back[claim.lease, False].append(answer.handle)
        else:
            gone.append(answer.handle)
    late = len(gone)
    for number, marks, values in _by_claim(gone):
        late -= db.execute(
            f"DELETE FROM messages WHERE claim = ? AND id IN {marks}", (number, *values)
        ).rowcount
    pipes, next_at = stored.pipes, stored.next_at
    if back:
        returned, again_at = _give_back(db, back)
        next_at = earliest(next_at, again_at)
        for pipe, numbers in armed(db, returned, claim.owner).items():
            pipes.setdefault(pipe, set()).update(numbers)
    return Put([], pipes, stored.dead, next_at, late, refused)


def _give_back(
    db: sqlite3.Connection, back: Mapping[tuple[float, bool], Sequence[Handle]]
) -> tuple[set[int], float | None]:
    """Let others have messages; the queues of those, and when the first may be delivered."""
    now = time()
    returned: set[int] = set()
    next_at: float | None = None
    for (delay, is_unseen), handles in back.items():
        at = now + delay if delay else None
        next_at = earliest(next_at, at)
        for number, marks, values in _by_claim(handles):
            where = f"WHERE claim = ? AND id IN {marks}"
            found = db.execute(f"SELECT DISTINCT queue FROM messages {where}", (number, *values))
            returned.update(queue for (queue,) in found)
            db.execute(
                "UPDATE messages SET state = ?, at = ?, claim = NULL, deliveries = deliveries - ? "
                + where,
                (READY if at is None else DELAYED, at, is_unseen, number, *values),
            )
    return returned, next_at


def _by_claim(handles: Sequence[Handle]) -> list[tuple[int, str, list[Any]]]:
    """Handles by the number of their claim, with the text for their ids and the ids."""
    ids: defaultdict[int, list[int]] = defaultdict(list)
    for handle in handles:
        ids[handle.claim].append(handle.id)
    return [(number, *in_list(chunk)) for number, each in ids.items() for chunk in chunks(each)]


def _holds(db: sqlite3.Connection, handle: Handle) -> bool:
    found = db.execute("SELECT 1 FROM messages WHERE id = ? AND claim = ?", handle).fetchone()
    return found is not None


def renew(db: sqlite3.Connection, handles: Sequence[Handle], lease: float) -> list[Handle]:
    """Begin leases anew; those that are lost."""
    until = time() + lease
    renewed = 0
    for number, marks, values in _by_claim(handles):
        renewed += db.execute(
            f"UPDATE messages SET at = ? WHERE claim = ? AND id IN {marks}",
            (until, number, *values),
        ).rowcount
    if renewed == len(handles):
        return []
    return [handle for handle in handles if not _holds(db, handle)]
