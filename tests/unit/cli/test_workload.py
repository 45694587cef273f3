"""The demo's work, and what it finds out."""

from __future__ import annotations

from dataclasses import replace

import gevent
import pytest

from greenconn.cli.demo import Plan, Snapshot, Workload
from greenconn.connection import Connection
from greenconn.exceptions import OperationalError
from greenconn.transport import memory

SMALL = Plan(
    messages=1000,
    consumers=10,
    queues=3,
    publishers=7,
    connections=2,
    window=100,
    stall_timeout=0.3,
)


def test_all_is_handled_once(url: str) -> None:
    connection = Connection(url)
    work = Workload(SMALL, connection)
    seen: list[Snapshot] = []
    work.run(seen.append, interval=0.01)
    summary = work.summary()
    assert (summary.published, summary.handled) == (1000, 1000)
    assert (summary.lost, summary.in_flight, summary.duplicates) == (0, 0, 0)
    assert summary.elapsed > 0
    assert 0 < summary.latencies[0] <= summary.latencies[1]
    assert seen[0].ready == 10
    assert max(each.published - each.handled for each in seen) <= 100 + 7 * SMALL.burst
    assert not connection.connected
    assert not memory.broker_of(connection.virtual_host).queues


def test_what_others_take_counts_as_lost(url: str) -> None:
    work = Workload(SMALL, Connection(url))
    with Connection(url) as thief:
        stolen: list[object] = []

        def steal(snapshot: Snapshot) -> None:
            if snapshot.ready == SMALL.consumers and not thief.connected:
                thief.default_channel.basic_consume(
                    work.names[0], no_ack=True, callback=stolen.append
                )

        draining = gevent.spawn(_drain, thief)
        work.run(steal, interval=0.01)
        summary = work.summary()
        draining.kill()
    assert summary.lost > 0
    assert summary.handled + summary.lost == summary.published


def _drain(connection: Connection) -> None:
    while True:
        if connection.connected:
            connection.drain_events()
        gevent.sleep(0.01)


def test_a_lost_connection_ends_it(url: str) -> None:
    work = Workload(SMALL, Connection(url))

    def cut(snapshot: Snapshot) -> None:
        memory.restart(url.rpartition("/")[2])

    with pytest.raises(OperationalError, match="the demo ended early"):
        work.run(cut, interval=0.01)
    summary = work.summary()
    assert summary.lost == 0


def test_cut_connections_lose_nothing(url: str) -> None:
    work = Workload(
        replace(SMALL, messages=5000, cut_interval=0.01, stall_timeout=30), Connection(url)
    )
    seen: list[Snapshot] = []
    work.run(seen.append, interval=0.01)
    summary = work.summary()
    assert (summary.handled, summary.lost, summary.in_flight) == (5000, 0, 0)
    assert summary.outages > 1
    assert seen[-1].outages == summary.outages
    assert seen[-1].memory > 2**20
    assert 1 < len(seen[-1].rates) <= 30


def test_an_interrupted_demo_says_how_far_it_came(url: str) -> None:
    work = Workload(replace(SMALL, messages=100_000), Connection(url))

    def interrupt(snapshot: Snapshot) -> None:
        if snapshot.handled:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run(interrupt, interval=0.01)
    summary = work.summary()
    assert 0 < summary.handled <= summary.published < 100_000
    assert summary.lost == 0
    assert summary.in_flight == summary.published - summary.handled


def test_a_broker_that_is_away(url: str) -> None:
    work = Workload(SMALL, Connection("amqp://127.0.0.1:1//"))
    with pytest.raises(OSError, match="refused"):
        work.run(lambda snapshot: None)
    assert work.summary().published == 0
