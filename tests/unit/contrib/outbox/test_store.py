"""What the database of an outbox does, in each kind."""

from __future__ import annotations

import json

from greenconn.contrib.outbox import Backlog, Lease
from tests.unit.contrib.outbox.conftest import Box

ALL = range(32)


def ids(box: Box, now: int = 0, limit: int = 100) -> list[int]:
    return [each.id for each in box.store.pending(ALL, now, limit)]


def write(box: Box, *keys: str | None) -> list[int]:
    with box.begin() as opened:
        for number, key in enumerate(keys):
            box.publish(opened, "orders", {"number": number}, key=key)
    return [row["id"] for row in box.rows()][-len(keys) :]


def test_rows_are_pending_until_they_were_sent(box: Box) -> None:
    written = write(box, "a", None, "a", None)
    assert written == sorted(written)
    assert ids(box) == written
    assert ids(box, limit=2) == written[:2]
    box.store.mark_sent(written[:3], 77)
    assert ids(box) == written[3:]
    assert [row["sent_ms"] for row in box.rows()] == [77, 77, 77, None]


def test_rows_of_other_partitions_are_not_seen(box: Box) -> None:
    write(box, "a", "b")
    first, second = box.rows()
    found = box.store.pending([second["partition"]], 0, 9)
    assert [(each.id, each.ordering_key) for each in found] == [(second["id"], "b")]
    assert json.loads(found[0].body) == {"number": 1}
    assert found[0].attempts == 0
    assert first["partition"] != second["partition"]


def test_what_is_rolled_back_is_never_seen(box: Box) -> None:
    try:
        with box.begin() as opened:
            box.publish(opened, "orders", 1)
            raise LookupError
    except LookupError:
        pass
    assert box.rows() == []


def test_a_refused_row_holds_up_its_key_alone(box: Box) -> None:
    a1, b1, a2, free = write(box, "a", "b", "a", None)
    box.store.mark_failed(a1, "Unroutable: nobody has it", 500)
    assert ids(box, 499) == [b1, free]
    assert ids(box, 500) == [a1, b1, a2, free]
    row = box.rows()[0]
    assert (row["attempts"], row["error"]) == (1, "Unroutable: nobody has it")
    box.store.mark_failed(free, "full", 900)
    assert ids(box, 500) == [a1, b1, a2]
    assert box.store.backlog().failing == 2
    # Once it is sent its key is free, whatever the time.
    box.store.mark_sent([a1], 1)
    assert ids(box, 0) == [b1, a2]


def test_the_backlog(box: Box) -> None:
    assert box.store.backlog() == Backlog(waiting=0, failing=0, oldest_ms=None)
    first, second = write(box, None, None)
    oldest = box.rows()[0]["created_ms"]
    assert box.store.backlog() == Backlog(waiting=2, failing=0, oldest_ms=oldest)
    box.store.mark_sent([first, second], 1)
    assert box.store.backlog().waiting == 0


def test_old_rows_are_pruned(box: Box) -> None:
    written = write(box, *[None] * 5)
    box.store.mark_sent(written[:4], 100)
    assert box.store.prune(100, 9) == 0
    assert box.store.prune(101, 3) == 3
    assert box.store.prune(101, 3) == 1
    assert [row["id"] for row in box.rows()] == written[4:]


def test_leases(box: Box) -> None:
    store = box.store
    one, two = Lease(name="p1", owner="", beat=0), Lease(name="p2", owner="", beat=0)
    store.add_leases([one, two])
    store.take_leases([one], "ada")
    store.add_leases([one, two])  # they are left as they are
    found = sorted(store.leases(), key=lambda each: each.name)
    assert found == [Lease(name="p1", owner="ada", beat=1), two]
    store.take_leases([one], "bob")  # too late
    store.renew_leases("ada")
    store.free_leases(["p1"], "bob")  # not his
    assert Lease(name="p1", owner="ada", beat=2) in store.leases()
    store.free_leases(["p1"], "ada")
    assert Lease(name="p1", owner="", beat=3) in store.leases()
    store.delete_leases([one, two])
    assert store.leases() == [Lease(name="p1", owner="", beat=3)]
