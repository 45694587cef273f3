"""Maintenance: functions that run in a transaction.

A process that died said nothing: its exclusive queues go, and so do the auto-delete queues that only
it consumed from.  What it held comes back when the leases end.

A link that lives may be taken for dead, too, when its process was suspended or blocked for longer than
its lease.  Nothing of it is left then, so its next renewal finds no row and raises ``LeaseExpired``:
the link ends, and the next one declares and consumes anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from time import time
from typing import NamedTuple

from greenconn.broker.port import Claimed, LeaseExpired
from greenconn.transport.sqlite.messages import Claim, next_time, ready_of, release_due, take_dead
from greenconn.transport.sqlite.queues import Pipes, Queues
from greenconn.transport.sqlite.sql import chunks, in_list


class MaintenanceResult(NamedTuple):
    """The findings of one maintenance run.

    Attributes:
        ready: consumed queues that have messages.
        gone: consumed queues that are deleted.
        dead: messages that had grown too old.
        pipes: those to wake, and for which queues; 0: that some are deleted.
        orphans: links of dead processes.
        overdue: links whose leases have ended, where time alone does not say that they are dead.
        next_at: when the next look is due.
    """

    ready: list[str]
    gone: list[str]
    dead: list[Claimed]
    pipes: Pipes
    orphans: list[str]
    overdue: list[str]
    next_at: float | None


def register(db: sqlite3.Connection, owner: str, lease: float) -> None:
    """Register a link that has consumers or exclusive queues."""
    db.execute(
        "INSERT INTO owners VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET until = excluded.until",
        (owner, time() + lease),
    )


def renew(db: sqlite3.Connection, owner: str, lease: float) -> None:
    """Renew the lease of a registered link.

    Raises:
        LeaseExpired: others have removed what it had.
    """
    until = time() + lease
    found = db.execute("UPDATE owners SET until = ? WHERE owner = ?", (until, owner)).rowcount
    if not found:
        raise LeaseExpired


def leave(db: sqlite3.Connection, queues: Queues, owner: str) -> Pipes:
    """Remove a link with its consumers and its exclusive queues."""
    pipes: Pipes = {}
    names = [name for (name,) in db.execute("SELECT name FROM queues WHERE owner = ?", (owner,))]
    consumed = db.execute(
        "SELECT queue, name, auto_delete FROM consumers JOIN queues ON queues.id = queue "
        "WHERE consumers.owner = ?",
        (owner,),
    ).fetchall()
    db.execute("DELETE FROM owners WHERE owner = ?", (owner,))
    for _, name, auto_delete in consumed:
        noted = queues.set_consumers(db, name, owner, 0, False)
        if noted is not None:
            pipes.update(noted[1])
        if auto_delete and not queues.other_consumers(db, name, owner):
            names.append(name)
    for name in names:
        for consumer in queues.drop(db, name)[1]:
            pipes.setdefault(consumer, set()).add(0)
    return pipes


def maintain(
    db: sqlite3.Connection,
    queues: Queues,
    how: Claim,
    consumed: Mapping[int, str],
    silent: Collection[str],
    is_registered: bool,
    trusts_clock: bool,
) -> MaintenanceResult:
    """Release what is due, and remove links that are dead.

    Arguments:
        consumed: what the own link consumes.
        silent: links whose pipes no process reads.
        is_registered: the own link has a row.
        trusts_clock: a lease that has ended says that its link is dead.

    Raises:
        LeaseExpired: the own link was registered, and others have removed it.
    """
    now = time()
    if is_registered:
        renew(db, how.owner, how.lease)
    due, pipes = release_due(db, now, how.owner)
    ended = [
        owner
        for (owner,) in db.execute(
            "SELECT owner FROM owners WHERE until <= ? AND owner != ?", (now, how.owner)
        )
    ]
    orphans = {*silent, *(ended if trusts_clock else ())} - {how.owner}
    for owner in orphans:
        _add(pipes, leave(db, queues, owner))
    for (name,) in db.execute(
        "SELECT name FROM queues WHERE idle_until <= ? OR (owner IS NOT NULL AND owner NOT IN "
        "(SELECT owner FROM owners) AND owner != ?)",
        (now, how.owner),
    ).fetchall():
        _add(pipes, {consumer: {0} for consumer in queues.drop(db, name)[1]})
    dead = take_dead(db, queues, how, now)
    there = _existing(db, list(consumed))
    gone = [name for number, name in consumed.items() if number not in there]
    ready = {*ready_of(db, there), *(due & there)}
    overdue = [each for each in ended if each not in orphans]
    names = [consumed[n] for n in ready]
    return MaintenanceResult(names, gone, dead, pipes, sorted(orphans), overdue, next_time(db))


def _existing(db: sqlite3.Connection, numbers: Sequence[int]) -> set[int]:
    """Return those of some queues that exist."""
    there: set[int] = set()
    for chunk in chunks(numbers):
        marks, values = in_list(chunk)
        found = db.execute(f"SELECT id FROM queues WHERE id IN {marks}", values)
        there.update(number for (number,) in found)
    return there


def _add(pipes: Pipes, more: Pipes) -> None:
    for owner, numbers in more.items():
        pipes.setdefault(owner, set()).update(numbers)
