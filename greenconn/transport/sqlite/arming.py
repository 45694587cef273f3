"""Who waits for a word about a queue."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

__all__ = ["Pipes", "armed"]

#: Who is to be told: the path of a pipe -> the numbers of queues.
Pipes = dict[str, set[int]]


def armed(db: sqlite3.Connection, queues: Iterable[int], owner: str) -> Pipes:
    """Those who wait for a word about *queues*: pipe -> queues.  They wait no more.

    Arguments:
        owner: who needs no word.
    """
    pipes: Pipes = {}
    for queue in queues:
        found = db.execute(
            "SELECT pipe FROM consumers JOIN owners USING (owner) "
            "WHERE queue = ? AND armed = 1 AND owner != ?",
            (queue, owner),
        ).fetchall()
        if found:
            db.execute("UPDATE consumers SET armed = 0 WHERE queue = ?", (queue,))
            for (pipe,) in found:
                pipes.setdefault(pipe, set()).add(queue)
    return pipes
