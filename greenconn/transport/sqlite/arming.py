"""Consumers that wait to be notified of messages in a queue."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from greenconn.transport.sqlite.lists import chunks, in_list

__all__ = ["Pipes", "arm", "armed"]

#: Links to notify through their pipes: link -> the numbers of the queues.
Pipes = dict[str, set[int]]


def arm(db: sqlite3.Connection, queues: Collection[int], owner: str) -> None:
    """Note that *owner* found nothing in these, and waits to be notified."""
    for chunk in chunks(list(queues)):
        marks, values = in_list(chunk)
        db.execute(
            f"UPDATE consumers SET armed = 1 WHERE owner = ? AND armed = 0 AND queue IN {marks}",
            (owner, *values),
        )


def armed(db: sqlite3.Connection, queues: Collection[int], owner: str) -> Pipes:
    """Return the consumers that wait to be notified of *queues*, and stop their waits.

    Arguments:
        owner: a link that is not notified.
    """
    pipes: Pipes = {}
    for chunk in chunks(list(queues)):
        marks, values = in_list(chunk)
        found = db.execute(
            f"SELECT queue, owner FROM consumers WHERE armed = 1 AND owner != ? AND queue IN {marks}",
            (owner, *values),
        ).fetchall()
        if found:
            db.execute(
                f"UPDATE consumers SET armed = 0 WHERE armed = 1 AND owner != ? AND queue IN {marks}",
                (owner, *values),
            )
            for queue, consumer in found:
                pipes.setdefault(consumer, set()).add(queue)
    return pipes
