"""Records of exchanges and queues in a real beanstalkd: those who write at the same time, or die."""

from __future__ import annotations

import json
import random
from typing import Any

import gevent
import pytest

from greenconn import Connection
from greenconn.broker.topology_port import Row
from greenconn.exceptions import PreconditionFailed
from greenconn.transport.beanstalk.errors import RecordTooBig
from greenconn.transport.beanstalk.topology import FIRST
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.exchange import ROUTERS
from greenconn.transport.virtual.state import Exchange
from tests.fix_beanstalk import BeanstalkFactory
from tests.integration.beanstalk_clients import (
    SOON,
    raw_to,
    store_at,
    stores_at,
)

PLAIN = Declaration()


def exchange(name: str, **options: Any) -> Exchange:
    return Exchange(name, "direct", ROUTERS["direct"](), **options)


def test_makers_at_the_same_time_make_one(beanstalk_url: str, unique: str) -> None:
    with stores_at(beanstalk_url, 20) as stores:
        for name in (f"{unique}.{number}" for number in range(5)):
            makers = [
                gevent.spawn(store.make_queue, name, Declaration(arguments={"maker": number}))
                for number, store in enumerate(random.sample(stores, len(stores)))
            ]
            made = {json.dumps(dict(each.get(timeout=SOON).arguments)) for each in makers}
            assert len(made) == 1
            found = {json.dumps(dict(store.find_queue(name).arguments)) for store in stores}  # type: ignore[union-attr]
            assert found == made
            with raw_to(beanstalk_url) as raw:
                counts = raw.counts(f"$queue.{name}")
            assert counts["current-jobs-ready"] == "1"
            assert counts["current-jobs-delayed"] == "0"
            stores[0].drop_queue(name)
            assert all(store.find_queue(name) is None for store in stores)


def test_changes_at_the_same_time_all_count(beanstalk_url: str, unique: str) -> None:
    rows = [Row(f"key{number}", "", f"{unique}.q") for number in range(60)]
    with stores_at(beanstalk_url, 10) as stores:
        changes = [
            gevent.spawn(stores[number % 10].topology.bind, unique, row)
            for number, row in enumerate(rows)
        ]
        gevent.joinall(changes, timeout=SOON, raise_error=True)
        for store in stores:
            assert sorted(store.topology.rows(unique) or ()) == sorted(rows)
        changes = [
            gevent.spawn(stores[number % 7].topology.unbind, unique, row)
            for number, row in enumerate(rows[:-1])
        ]
        gevent.joinall(changes, timeout=SOON, raise_error=True)
        assert stores[9].topology.rows(unique) == (rows[-1],)
        assert stores[9].topology.rows(unique) is stores[9].topology.rows(unique)
        with raw_to(beanstalk_url) as raw:
            assert raw.counts(f"$exchange.{unique}")["current-jobs-ready"] == "1"
        stores[0].topology.delete(unique)
        assert stores[5].topology.rows(unique) is None


def test_writer_that_dies_between_two_versions(beanstalk_url: str, unique: str) -> None:
    tube = f"$exchange.{unique}"
    first, second, third = (Row(key, "", "q") for key in "abc")
    with store_at(beanstalk_url) as store:
        store.topology.bind(unique, first)
        raw_rows = [["a", "", "q", None, False], ["b", "", "q", None, False]]
        with raw_to(beanstalk_url) as raw:
            raw(f"watch {tube}")
            raw("ignore default")
            held = raw("reserve-with-timeout 0")
            version = json.loads(held.body)["version"] + 1
            # Reserved: nobody else changes it, and what was read before counts after a while.
            assert store.topology.rows(unique) == (first,)
            other = gevent.spawn(store.topology.bind, unique, third)
            gevent.sleep(0.05)
            assert not other.ready()
            body = json.dumps({"version": version, "rows": raw_rows}).encode()
            raw.put(tube, body, priority=FIRST - version)
            assert store.topology.rows(unique) == (first, second)
            gevent.sleep(0.05)
            assert not other.ready()  # the old version is still in the hands of its writer
        other.get(timeout=SOON)
        assert store.topology.rows(unique) == (first, second, third)
        # The old version is deleted by the change that finds it ready: that one, or the next.
        store.topology.unbind(unique, third)
        assert store.topology.rows(unique) == (first, second)
        with raw_to(beanstalk_url) as raw:
            assert raw.counts(tube)["current-jobs-ready"] == "1"
        store.topology.delete(unique)


@pytest.mark.full
def test_writer_that_was_stopped_too_long_changes_nothing(beanstalk_url: str, unique: str) -> None:
    """Its version came second: the first of two counts, and the next change removes the other."""
    tube = f"$exchange.{unique}"
    row = Row("a", "", "q")
    with store_at(beanstalk_url) as store:
        store.topology.bind(unique, row)
        with raw_to(beanstalk_url) as raw:
            raw.put(tube, b'{"version": 1, "rows": []}', priority=FIRST - 1)
            raw.put(tube, b"rubbish", priority=FIRST)
            assert store.topology.rows(unique) == (row,)
            store.topology.bind(unique, Row("b", "", "q"))
            assert store.topology.rows(unique) == (row, Row("b", "", "q"))
            assert raw.counts(tube)["current-jobs-ready"] == "1"
        store.topology.delete(unique)


def test_maker_that_dies_before_the_kick(beanstalk_url: str, unique: str) -> None:
    with raw_to(beanstalk_url) as raw, store_at(beanstalk_url) as store:
        raw(f"use $queue.{unique}")
        body = b'{"durable": true, "auto_delete": false, "owner": null, "arguments": {}}'
        raw(f"put {FIRST} {2**31} 60 {len(body)}", body)
        assert store.find_queue(unique) is None
        assert store.make_queue(unique, PLAIN).durable
        store.drop_queue(unique)
        assert store.find_queue(unique) is None


def test_tables_that_are_too_big(beanstalk_with: BeanstalkFactory, unique: str) -> None:
    with store_at(beanstalk_with("-z", "2000").url) as store:
        store.topology.declare(exchange("x"))
        with pytest.raises(RecordTooBig, match=r"must have at most 2000 bytes"):
            for number in range(100):
                store.topology.bind("x", Row(f"key{number}", "", "q" * 50))
        rows = store.topology.rows("x")
        assert rows
        store.topology.unbind("x", rows[0])
        store.topology.bind("x", Row("fits", "", "q"))


def test_tables_that_are_too_big_end_no_connection(
    beanstalk_with: BeanstalkFactory, unique: str
) -> None:
    with Connection(beanstalk_with("-z", "2000").url) as connection:
        link, channel = connection.connection, connection.default_channel
        channel.exchange_declare(unique, "topic")
        channel.queue_declare(unique)
        with pytest.raises(PreconditionFailed, match="must have at most 2000 bytes"):
            for number in range(100):
                channel.queue_bind(unique, unique, f"{number}.{'x' * 50}")
        assert link.is_open
