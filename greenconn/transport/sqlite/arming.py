"""Who waits for a word about a queue."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from greenconn.transport.sqlite.lists import chunks, in_list

__all__ = ["Pipes", "arm", "armed"]

#: Who is to be told, through its pipe, and of which queues: link -> their numbers.
Pipes = dict[str, set[int]]


def arm(db: sqlite3.Connection, queues: Collection[int], owner: str) -> None:
    """*owner* found nothing in these, and waits for a word."""
    for chunk in chunks(list(queues)):
        marks, values = in_list(chunk)
        db.execute(
            f"UPDATE consumers SET armed = 1 WHERE owner = ? AND armed = 0 AND queue IN {marks}",
            (owner, *values),
        )


def armed(db: sqlite3.Connection, queues: Collection[int], owner: str) -> Pipes:
    """Those who wait for a word about *queues*.  They wait no more.

    Arguments:
        owner: who needs no word.
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
