"""What a link knows of a queue: whatever waits is found, in whichever order the news come."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from greenconn.transport.couchdb import claiming as module
from greenconn.transport.couchdb.api import message_id
from greenconn.transport.couchdb.claiming import PendingIndex


class FakeDatabase:
    """A server with one queue, and a feed whose news may be late."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.docs: dict[str, int] = {}
        self.news: list[tuple[str, int]] = []
        self.made = 0

    def put(self) -> None:
        self.made += 1
        micros = self.made * 10 - self.chance.choice([0, 0, 0, 25])  # some clocks are behind
        priority = self.chance.choice([0, 0, 0, 5])
        self.change(message_id("q", priority, max(micros, 0), f"{self.made}"), 1)

    def change(self, doc_id: str, number: int) -> None:
        self.docs[doc_id] = number
        self.news.append((doc_id, number))

    def others(self) -> None:
        """Somebody else claims, gives back, or is done with a message."""
        if not self.docs:
            return
        doc_id = self.chance.choice(sorted(self.docs))
        if self.docs[doc_id] % 2 == 0 and self.chance.random() < 0.5:
            del self.docs[doc_id]
            self.news.append((doc_id, 0))
        else:
            self.change(doc_id, self.docs[doc_id] + 1)

    def tell(self, pending: PendingIndex, most: int) -> None:
        """Bring some of the news."""
        for doc_id, number in self.news[:most]:
            if number:
                pending.note(doc_id, f"{number}-x")
            else:
                pending.forget(doc_id)
        del self.news[:most]

    def step(self, pending: PendingIndex) -> None:
        """Something happens while the link waits for an answer."""
        for _ in range(self.chance.randrange(3)):
            happens: list[Callable[[], None]] = [
                self.put,
                self.others,
                lambda: self.tell(pending, 2),
            ]
            self.chance.choice(happens)()


def claim(
    database: FakeDatabase, pending: PendingIndex, limit: int, pause: Callable[[], None]
) -> int:
    """What the claims of a link do while the database changes in between."""
    pending.watch()
    seen: dict[str, int] = {}
    ids = pending.take_returned(limit)
    if ids:
        pause()
        seen = {doc_id: database.docs[doc_id] for doc_id in ids if doc_id in database.docs}
        pause()
    elif not pending.is_done:
        pause()
        rows = sorted(doc_id for doc_id in database.docs if doc_id >= pending.rest.start)[:limit]
        seen = {doc_id: database.docs[doc_id] for doc_id in rows}
        pause()
        pending.passed(rows, is_last=len(rows) < limit)
    known: dict[str, int] = {}
    taken = 0
    candidates = {doc_id: number for doc_id, number in seen.items() if number % 2}
    results = {}
    for doc_id, number in candidates.items():
        known[doc_id] = number
        if database.docs.get(doc_id) == number:  # no conflict
            database.change(doc_id, number + 1)
            results[doc_id] = number + 1
    pause()
    for doc_id, number in results.items():
        known[doc_id] = number
        taken += 1
        if database.docs.get(doc_id) == number:
            del database.docs[doc_id]  # handled
    pending.used(known)
    return taken


@pytest.mark.parametrize("remembered", [3, 2000])
def test_whatever_waits_is_found(
    monkeypatch: pytest.MonkeyPatch, remembered: int, long: bool
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", remembered)
    for seed in range(5000 if long else 400):
        chance = Random(seed)
        database, pending = FakeDatabase(chance), PendingIndex("q")
        for _ in range(chance.randrange(40)):
            database.step(pending)
            limit = chance.randrange(1, 5)
            claim(database, pending, limit, lambda d=database, s=pending: d.step(s))  # type: ignore[misc]
        # Now it becomes quiet, and all news arrive.
        while database.news or pending.may_have_messages:
            database.tell(pending, chance.randrange(1, 4))
            claim(database, pending, 3, lambda: None)
        assert [doc_id for doc_id, number in database.docs.items() if number % 2] == [], seed
