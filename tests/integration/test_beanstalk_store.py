"""The store over a real beanstalkd: declarations, the wake-up job, and whose turn it is."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from time import monotonic
from typing import Any

import gevent
import pytest
from msgspec.structs import replace

from greenconn.broker.port import NoQueue, Settlement, SettleRequest
from greenconn.broker.queues import Declaration
from greenconn.exceptions import PreconditionFailed
from greenconn.transport.beanstalk.claiming import FIRST
from greenconn.transport.beanstalk.connection import DeclarationRefused, JobTooBig, ServerRefuses
from tests.fix_beanstalk import BeanstalkFactory
from tests.fix_relay import RelayFactory
from tests.fix_wires import until
from tests.integration.beanstalk_clients import SOON, bodies, entry, raw_to, store_at, stores_at
from tests.integration.couchdb_clients import done

PLAIN = Declaration()


def test_queues_exist_by_declaration_or_by_use(beanstalk_url: str, unique: str) -> None:
    with store_at(beanstalk_url) as store, raw_to(beanstalk_url) as raw:
        assert store.find_queue(unique) is None
        assert isinstance(store.put([entry(unique)])[0], NoQueue)
        assert raw.counts(unique).get("current-jobs-ready", "0") == "0"
        # A worker of another program waits there.
        raw(f"watch {unique}")
        assert store.put([entry(unique)]) == [None]
        raw(f"ignore {unique}")
        assert store.find_queue(unique) == Declaration(durable=True)
        assert store.purge(unique) == 1
        assert store.find_queue(unique) is None
        store.make_queue(unique, PLAIN)
        assert store.find_queue(unique) == PLAIN
        assert store.drop_queue(unique) == 0


def test_names(beanstalk_url: str, unique: str) -> None:
    names = [f"-{unique} a/b@c", f"${unique}.é\n", f"$queue.{unique}", unique.upper()]
    with stores_at(beanstalk_url, 2) as (one, two):
        for name in names:
            one.make_queue(name, PLAIN)
            assert one.put([entry(name, name)]) == [None]
        claimed = [each for name in names for each in two.claim({name: 1}, 0)]
        assert [each.queue for each in claimed] == bodies(claimed) == names
        for name in names:
            assert one.drop_queue(name) == 0
        with pytest.raises(PreconditionFailed, match="from 1 to 200"):
            one.make_queue("x" * 201, PLAIN)
        with pytest.raises(PreconditionFailed, match="must take at most 193"):
            one.make_queue("x" * 194, PLAIN)
        (error,) = one.put([entry("x" * 300)])
        assert isinstance(error, PreconditionFailed)


def test_clients_that_declare_at_the_same_time_declare_one(beanstalk_url: str, unique: str) -> None:
    with stores_at(beanstalk_url, 20) as stores, raw_to(beanstalk_url) as raw:
        for name in (f"{unique}.{number}" for number in range(5)):
            makers = [
                gevent.spawn(store.make_queue, name, Declaration(arguments={"maker": number}))
                for number, store in enumerate(random.sample(stores, len(stores)))
            ]
            gevent.joinall(makers, timeout=SOON, raise_error=True)
            declared = [maker.value for maker in makers]
            assert [store.find_queue(name) for store in stores] == declared == [declared[0]] * 20
            assert raw.counts(f"$queue.{name}")["current-jobs-ready"] == "1"
            droppers = [gevent.spawn(store.drop_queue, name) for store in stores[:5]]
            gevent.joinall(droppers, timeout=SOON, raise_error=True)
            assert all(store.find_queue(name) is None for store in stores)


def test_client_that_dies_while_it_declares(beanstalk_url: str, unique: str) -> None:
    """A second declaration stays: the first counts, and both are deleted."""
    first, second = (Declaration(arguments={"maker": number}) for number in range(2))
    with store_at(beanstalk_url) as store, raw_to(beanstalk_url) as raw:
        for each in (first, second):
            raw.put(f"$queue.{unique}", each.text().encode(), priority=0)
        assert store.make_queue(unique, second) == store.find_queue(unique) == first
        store.drop_queue(unique)
        assert store.find_queue(unique) is None
        raw.put(f"$queue.{unique}", b"rubbish")
        assert store.find_queue(unique) == PLAIN
        store.drop_queue(unique)


def test_declaration_too_big(beanstalk_with: BeanstalkFactory, unique: str) -> None:
    with store_at(beanstalk_with("-z", "2000").url) as store:
        with pytest.raises(PreconditionFailed, match="must have at most 2000 bytes"):
            store.make_queue(unique, Declaration(arguments={"note": "x" * 2000}))
        assert store.make_queue(unique, PLAIN) == PLAIN


def test_queue_of_a_link_that_is_gone_is_deleted_once(beanstalk_url: str, unique: str) -> None:
    mine = Declaration(owner=f"{unique}0")
    with stores_at(beanstalk_url, 3, unique) as (owner, one, two):
        owner.make_queue(unique, mine)
        assert owner.put([entry(unique)]) == [None]
        assert one.find_queue(unique) == two.find_queue(unique) == mine
        owner.drop()
        until(lambda: one.find_queue(unique) is None)
        assert isinstance(two.put([entry(unique)])[0], NoQueue)
        assert two.make_queue(unique, PLAIN) == one.find_queue(unique) == PLAIN
        assert one.size(unique) == 0
        one.drop_queue(unique)


# -- messages


def test_settlements(beanstalk_url: str, unique: str) -> None:
    with store_at(beanstalk_url) as store, raw_to(beanstalk_url) as raw:
        store.make_queue(unique, PLAIN)
        store.put([entry(unique, body) for body in "abcd"])
        a, b, c, d = store.claim({unique: 10}, 0)
        assert [each.deliveries for each in (a, b, c, d)] == [0] * 4
        store.settle(
            [
                done(a),
                SettleRequest(b, Settlement.REQUEUE),
                SettleRequest(c, Settlement.REJECT),
                SettleRequest(d, Settlement.REQUEUE, delay=2.0),
            ]
        )
        counts = raw.counts(unique)
        kinds = ("ready", "reserved", "buried", "delayed")
        assert [counts[f"current-jobs-{each}"] for each in kinds] == ["1", "0", "1", "1"]
        assert store.kick(unique, 10) == 1
        again = store.claim({unique: 10}, 0)
        assert [(*bodies([each]), each.deliveries) for each in again] == [("b", 1), ("c", 1)]
        assert store.kick(unique, 10) == 1  # where none is buried, the delayed
        assert store.size(unique) == 1
        # One that is settled already is passed over.
        store.settle([done(a), *(done(each) for each in again)])
        assert store.renew([a.handle]) == [a.handle]
        assert store.drop_queue(unique) == 1


def test_what_is_rejected_may_be_deleted(beanstalk_url: str, unique: str) -> None:
    with store_at(beanstalk_url, bury_rejected=False) as store:
        store.make_queue(unique, PLAIN)
        store.put([entry(unique)])
        (claimed,) = store.claim({unique: 1}, 0)
        store.settle([SettleRequest(claimed, Settlement.REJECT)])
        assert store.kick(unique, 10) == 0
        store.drop_queue(unique)


def test_too_old_ones_are_dead(beanstalk_url: str, unique: str) -> None:
    with store_at(beanstalk_url) as store:
        store.make_queue(unique, PLAIN)
        message = entry(unique, "x")
        store.put([replace(message, lifetime=0.0), message, replace(message, lifetime=60.0)])
        claimed = store.claim({unique: 10}, 0)
        assert [each.dead for each in claimed] == ["expired", None, None]
        assert all("expires_at" not in (each.envelope or {}) for each in claimed)
        store.settle([SettleRequest(each, Settlement.REJECT) for each in claimed])
        assert store.kick(unique, 10) == 2  # the dead one is not buried
        store.drop_queue(unique)


def test_jobs_of_other_programs(beanstalk_url: str, unique: str) -> None:
    kombu = {
        "body": "eyJhIjogMX0=",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_info": {"priority": 0, "routing_key": "q", "exchange": "x"},
            "delivery_mode": 2,
            "delivery_tag": "d6a1",
        },
    }
    with store_at(beanstalk_url) as store, raw_to(beanstalk_url) as raw:
        raw.put(unique, json.dumps(kombu).encode())
        for rubbish in (b"", b"{", b"[]", b'{"body": 1}', b'{"properties": 1, "body": 2}', b"\xff"):
            raw.put(unique, rubbish)
        first, *others = store.claim({unique: 10}, 0)
        assert first.envelope == kombu
        # A malformed part costs that part alone.
        malformed = {"properties": 1, "body": 2}
        assert [each.envelope for each in others] == [*[None] * 4, malformed, None]
        assert others[-1].raw == b"\xff"
        store.settle([done(each) for each in (first, *others)])


def test_job_too_big(beanstalk_with: BeanstalkFactory, unique: str) -> None:
    with store_at(beanstalk_with().url) as store:
        store.make_queue(unique, PLAIN)
        outcomes = store.put([entry(unique, body) for body in ("a", "x" * 70_000, "b")])
        assert (outcomes[0], outcomes[2]) == (None, None)
        assert isinstance(outcomes[1], JobTooBig)
        assert "at most 65535 bytes" in str(outcomes[1])
        assert "start beanstalkd with a larger limit, as -z 131070" in str(outcomes[1])
        assert store.size(unique) == 2


# -- waiting


def test_acks_reach_a_connection_that_waits(beanstalk_url: str, unique: str) -> None:
    with store_at(beanstalk_url) as store, raw_to(beanstalk_url) as raw:

        def waits() -> bool:
            return b"current-waiting: 1" in raw(f"stats-tube {unique}").body

        store.make_queue(unique, PLAIN)
        waiter = gevent.spawn(store.claim, {unique: 5}, 20.0)
        until(waits)
        store.put([entry(unique, "a")])
        (claimed,) = waiter.get(timeout=SOON)
        for _ in range(20):
            waiter = gevent.spawn(store.claim, {unique: 5}, 20.0)
            until(waits)
            began_at = monotonic()
            assert store.renew([claimed.handle]) == []
            assert monotonic() - began_at < SOON
            assert waiter.get(timeout=SOON) == []
        waiter = gevent.spawn(store.claim, {unique: 5}, 20.0)
        until(waits)
        store.settle([done(claimed)])
        assert waiter.get(timeout=SOON) == []
        waiter = gevent.spawn(store.claim, {unique: 5}, 20.0)
        gevent.sleep(0)  # it may not have got as far as the server yet
        store.interrupt()
        assert waiter.get(timeout=SOON) == []
        store.drop_queue(unique)


def test_a_wait_is_interrupted_that_was_begun_at_once_after_another(
    beanstalk_url: str, relay_to: RelayFactory, unique: str
) -> None:
    """The kick may overtake, on its connection, what buries the wake-up job on the other."""
    with store_at(relay_to(beanstalk_url).url) as store:
        store.make_queue(unique, PLAIN)

        def claim() -> None:
            for _ in range(20):
                gevent.spawn(store.interrupt)  # as soon as this greenlet waits
                assert store.claim({unique: 1}, 25.0) == []

        gevent.spawn(claim).get(timeout=15)
        store.drop_queue(unique)


@pytest.mark.full
def test_wakeup_jobs_of_killed_processes_are_deleted(beanstalk_url: str, unique: str) -> None:
    with raw_to(beanstalk_url) as raw:
        with store_at(beanstalk_url, f"{unique}killed") as store:
            store.claim({unique: 1}, 1.0)
            assert raw.counts(f"$wakeup.{unique}killed0")["current-jobs-buried"] == "1"
        with store_at(beanstalk_url, f"{unique}closed") as store:
            store.claim({unique: 1}, 1.0)
            tubes = raw("list-tubes").body.decode()
            assert f"$wakeup.{unique}killed0" not in tubes
            assert f"$wakeup.{unique}closed0" in tubes
            store.close()
        assert f"$wakeup.{unique}closed0" not in raw("list-tubes").body.decode()


def test_without_a_wakeup_job_waits_are_short(beanstalk_url: str, unique: str) -> None:
    with store_at(beanstalk_url, unique) as store, raw_to(beanstalk_url) as raw:
        store.make_queue(unique, PLAIN)
        store.put([entry(unique)])
        (claimed,) = store.claim({unique: 1}, 20.0)
        raw(f"use $wakeup.{unique}0")
        assert raw(f"delete {raw('peek-buried').number}").word == b"DELETED"
        waiter = gevent.spawn(store.claim, {unique: 5}, 1.0)
        until(lambda: raw.counts(unique)["current-waiting"] == "1")
        store.settle([done(claimed)])
        assert waiter.get(timeout=SOON) == []
        began_at = monotonic()
        assert store.claim({unique: 5}, 20.0) == []
        assert monotonic() - began_at < SOON
        store.drop_queue(unique)


@pytest.mark.full
def test_draining_server_is_drained(beanstalk_with: BeanstalkFactory, unique: str) -> None:
    server = beanstalk_with()
    with store_at(server.url) as store, raw_to(server.url) as raw:
        store.make_queue(unique, PLAIN)
        store.put([entry(unique, body) for body in "abc"])
        server.drain()
        until(lambda: b"draining: true" in raw("stats").body)
        (error,) = store.put([entry(unique, "d")])
        assert isinstance(error, ServerRefuses)
        assert "is in drain mode" in str(error)
        with pytest.raises(DeclarationRefused, match="drain mode"):
            store.make_queue("another", PLAIN)
        assert store.make_queue(unique, PLAIN) == PLAIN
        got: list[Any] = []
        while len(got) < 3:
            # No wake-up job can be made now.
            claimed = store.claim({unique: 1}, 20.0)
            got += bodies(list(claimed))
            store.settle([done(each) for each in claimed])
        assert got == ["a", "b", "c"]


@pytest.mark.full
def test_jobs_with_little_time_are_touched_in_time(beanstalk_url: str, unique: str) -> None:
    with stores_at(beanstalk_url, 2) as (holder, other), raw_to(beanstalk_url) as raw:
        raw.put(unique, b"{}", time_to_run=1)
        raw.put(f"{unique}.2", b"{}", time_to_run=2)
        held = [*holder.claim({unique: 1}, 0), *holder.claim({f"{unique}.2": 1}, 1.0)]
        waiter = gevent.spawn(holder.claim, {f"{unique}.3": 1}, 20.0)
        wanted = {unique: 1, f"{unique}.2": 1}
        assert other.claim(wanted, 3.5) == []
        holder.settle([done(each) for each in held])
        assert waiter.get(timeout=SOON) == []
        assert other.claim(wanted, 0) == []


# -- turns


@pytest.mark.full
def test_full_tube_does_not_keep_others_waiting(beanstalk_url: str, unique: str) -> None:
    many, few = f"{unique}.many", f"{unique}.few"
    with store_at(beanstalk_url) as store:
        for name in (many, few):
            store.make_queue(name, PLAIN)
        store.put([entry(many, str(number)) for number in range(300)])
        taken: Counter[str] = Counter()
        wanted = {many: 10, few: 5}

        def claim() -> None:
            claimed = store.claim(wanted, 5.0)
            found = Counter(each.queue for each in claimed)
            assert all(found[name] <= wanted[name] for name in found)
            taken.update(found)
            store.settle([done(each) for each in claimed])

        for _ in range(3):
            claim()
        assert taken[many] == 1 + FIRST + 2 * FIRST  # twice as many each time that all came
        store.put([entry(few) for _ in range(7)])
        for _ in range(3):
            claim()
        assert taken[few] >= 6
        while sum(taken.values()) < 307:
            claim()
        assert taken == {many: 300, few: 7}
        for name in (many, few):
            store.drop_queue(name)


@pytest.mark.full
def test_hundred_tubes_over_one_link(beanstalk_url: str, unique: str) -> None:
    names = [f"{unique}.{number}" for number in range(100)]
    with stores_at(beanstalk_url, 2) as (consumer, producer), raw_to(beanstalk_url) as raw:
        for name in names:
            producer.make_queue(name, PLAIN)
        got: Counter[str] = Counter()

        def consume() -> None:
            while sum(got.values()) < 1000:
                claimed = consumer.claim(dict.fromkeys(names, 3), 20.0)
                got.update(each.queue for each in claimed)
                consumer.settle([done(each) for each in claimed])

        connections = raw("stats").body
        consuming = gevent.spawn(consume)
        for _ in range(10):
            producer.put([entry(name) for name in random.sample(names, 100)])
            gevent.sleep(0.01)
        consuming.get(timeout=30)
        assert got == dict.fromkeys(names, 10)
        assert b"current-connections: 4" in raw("stats").body, connections
        for name in names:
            producer.drop_queue(name)


def test_consumers_are_counted_across_processes(beanstalk_url: str, unique: str) -> None:
    with stores_at(beanstalk_url, 3) as (one, two, three):
        assert one.set_consumers(unique, 1)
        assert one.set_consumers(unique, 2)
        assert two.set_consumers(unique, 1)
        assert (
            one.other_consumers(unique),
            two.other_consumers(unique),
            three.other_consumers(unique),
        ) == (1, 1, 2)
        assert not three.set_consumers(unique, 1, exclusive=True)
        assert one.set_consumers(unique, 0)
        two.drop()
        end = monotonic() + SOON
        while three.other_consumers(unique) and monotonic() < end:
            gevent.sleep(0.01)
        assert three.set_consumers(unique, 1, exclusive=True)
        assert not one.set_consumers(unique, 1)
        assert three.set_consumers(unique, 0)
        assert one.set_consumers(unique, 1, exclusive=True)


def test_a_tube_is_asked_for_as_many_jobs_as_it_may_have(beanstalk_url: str, unique: str) -> None:
    with store_at(beanstalk_url) as store, raw_to(beanstalk_url) as raw:

        def reserves() -> int:
            found = re.search(rb"cmd-reserve-with-timeout: (\d+)", raw("stats").body)
            assert found is not None
            return int(found[1])

        store.make_queue(unique, PLAIN)
        before = 0
        for number in range(11):
            store.put([entry(unique)])
            assert len(store.claim({unique: 100}, SOON)) == 1
            if not number:  # the first one also empties what the killed have left
                before = reserves()
        assert reserves() - before < 100  # where each was asked for a hundred, a thousand
        store.put([entry(unique) for _ in range(150)])
        sizes: list[int] = []
        while sum(sizes) < 150:
            sizes.append(len(store.claim({unique: 100}, SOON)))
        assert max(sizes) > 50
        assert len(sizes) < 15
