"""What a link knows of a queue: whatever waits is found, in whichever order the news come."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from greenconn.transport.couchdb import sight as module
from greenconn.transport.couchdb.names import generation, is_waiting, message_id
from greenconn.transport.couchdb.sight import Sight


class World:
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

    def tell(self, sight: Sight, most: int) -> None:
        """Bring some of the news."""
        for doc_id, number in self.news[:most]:
            if number:
                sight.note(doc_id, f"{number}-x")
            else:
                sight.forget(doc_id)
        del self.news[:most]

    def step(self, sight: Sight) -> None:
        """Something happens while the link waits for an answer."""
        for _ in range(self.chance.randrange(3)):
            happens: list[Callable[[], None]] = [
                self.put,
                self.others,
                lambda: self.tell(sight, 2),
            ]
            self.chance.choice(happens)()


def claim(world: World, sight: Sight, limit: int, pause: Callable[[], None]) -> int:
    """What the claims of a link do, with the world going on in between."""
    sight.watch()
    seen: dict[str, int] = {}
    ids = sight.take_returned(limit)
    if ids:
        pause()
        seen = {doc_id: world.docs[doc_id] for doc_id in ids if doc_id in world.docs}
        pause()
    elif not sight.is_done:
        pause()
        rows = sorted(doc_id for doc_id in world.docs if doc_id >= sight.rest.start)[:limit]
        seen = {doc_id: world.docs[doc_id] for doc_id in rows}
        pause()
        sight.passed(rows, is_last=len(rows) < limit)
    known: dict[str, int] = {}
    taken = 0
    candidates = {doc_id: number for doc_id, number in seen.items() if number % 2}
    results = {}
    for doc_id, number in candidates.items():
        known[doc_id] = number
        if world.docs.get(doc_id) == number:  # no conflict
            world.change(doc_id, number + 1)
            results[doc_id] = number + 1
    pause()
    for doc_id, number in results.items():
        known[doc_id] = number
        taken += 1
        if world.docs.get(doc_id) == number:
            del world.docs[doc_id]  # handled
    sight.used(known)
    return taken


@pytest.mark.parametrize("remembered", [3, 2000])
def test_whatever_waits_is_found(
    monkeypatch: pytest.MonkeyPatch, remembered: int, long: bool
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", remembered)
    for seed in range(5000 if long else 400):
        chance = Random(seed)
        world, sight = World(chance), Sight("q")
        for _ in range(chance.randrange(40)):
            world.step(sight)
            claim(world, sight, chance.randrange(1, 5), lambda w=world, s=sight: w.step(s))  # type: ignore[misc]
        # Now it becomes quiet, and all news arrive.
        while world.news or sight.is_worth_a_look:
            world.tell(sight, chance.randrange(1, 4))
            claim(world, sight, 3, lambda: None)
        assert [doc_id for doc_id, number in world.docs.items() if number % 2] == [], seed


def test_what_is_due_later_is_brought_forward() -> None:
    sight = Sight("q")
    doc_id = message_id("q", 0, 1, "a")
    sight.watch()
    sight.passed([doc_id], is_last=True)
    sight.used({doc_id: 1})
    sight.delay(doc_id, 100.0)
    assert sight.next_due == 100.0
    assert not sight.is_worth_a_look
    sight.due(99.9)
    assert not sight.is_worth_a_look
    sight.due(100.0)
    assert sight.take_returned(5) == [doc_id]
    assert sight.next_due is None


def test_what_is_held_or_gone_is_not_looked_for() -> None:
    sight = Sight("q")
    ids = [message_id("q", 0, n, "a") for n in range(3)]
    sight.passed(ids, is_last=True)
    assert [sight.note(doc_id, "3-x") for doc_id in ids] == [True] * 3
    assert not sight.note(ids[0], "4-x")
    sight.forget(ids[1])
    assert sight.take_returned(5) == [ids[2]]
    assert generation("4-x") == 4
    assert not is_waiting("4-x")
