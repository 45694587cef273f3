"""Redis Cluster: slots that move while they are used, and nodes that are killed."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import Any

import gevent
from redis.crc import key_slot

import greenconn
from greenconn import Connection, Queue
from greenconn.transport.redis.cluster.placement import PARTITIONS, ClusterPlacement, tag_of
from tests.brokers.redis_cluster import SLOTS, RedisCluster
from tests.fix_wires import until

SOON = 60.0
#: With a short lease, so that what is lost comes back while a test lasts.
OPTIONS = {"lease": 2.0}


class Load:
    """Publishers and consumers of many queues, and what became of each message.

    Arguments:
        url: of the cluster.
        names: of the queues.
        options: of the transport.
    """

    def __init__(self, url: str, names: list[str], **options: Any) -> None:
        self._names = names
        self._publishing = Connection(url, transport_options={**OPTIONS, **options})
        self._consuming = Connection(url, transport_options={**OPTIONS, **options})
        self.confirmed: set[int] = set()
        self.got: Counter[int] = Counter()
        self.longest = 0.0
        self._number = 0
        self._is_over = False
        self.lost: list[BaseException] = []

    def __enter__(self) -> Load:
        for connection in (self._publishing, self._consuming):
            connection.connect()
            connection.session.on_connection_lost.append(self.lost.append)
        self._consumers = [
            greenconn.spawn_consumer(Queue(name), self._take, connection=self._consuming)
            for name in self._names
        ]
        assert all(each.wait_ready(SOON) for each in self._consumers)
        self._publishers = [gevent.spawn(self._publish, name) for name in self._names]
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over = True
        gevent.joinall(self._publishers)
        for each in self._consumers:
            each.stop(SOON)
        self._publishing.close()
        self._consuming.close()

    def _publish(self, name: str) -> None:
        while not self._is_over:
            self._number += 1
            number = self._number
            began = monotonic()
            greenconn.publish(Queue(name), number, connection=self._publishing, timeout=SOON)
            self.longest = max(self.longest, monotonic() - began)
            self.confirmed.add(number)

    def _take(self, body: int, message: object) -> None:
        self.got[body] += 1

    def go_on(self, count: int) -> None:
        """Wait until so many more messages were confirmed, of each queue some."""
        wanted = len(self.confirmed) + count
        until(lambda: len(self.confirmed) >= wanted, SOON)

    def finish(self) -> None:
        """Stop publishing, and wait until all that was confirmed has come."""
        self._is_over = True
        gevent.joinall(self._publishers, raise_error=True)
        until(lambda: self.confirmed <= set(self.got), SOON, "all that was confirmed")


def slot_of(queue: str) -> int:
    """Return the slot of a queue."""
    return key_slot(f"{{{tag_of(queue)}}}{queue}".encode())


def placement_of(connection: Connection) -> ClusterPlacement:
    """Return the placement of a connection to a cluster."""
    placement = connection.connection.placement
    assert isinstance(placement, ClusterPlacement)
    return placement


def test_partitions_are_spread_over_all_slots() -> None:
    slots = {key_slot(f"{{{tag_of(f'queue-{number}')}}}".encode()) for number in range(5000)}
    assert sorted(slot * PARTITIONS // SLOTS for slot in slots) == list(range(PARTITIONS))


def test_a_hash_tag_in_a_name_decides() -> None:
    assert tag_of("{orders}.new") == tag_of("{orders}.failed") == tag_of("orders")


def test_slots_move_under_load(own_redis_cluster: RedisCluster, unique: str, long: bool) -> None:
    names = [f"{unique}-{number}" for number in range(20)]
    moves = 40 if long else 6
    with Load(own_redis_cluster.urls, names) as load:
        for name in (names * 2)[:moves]:
            load.go_on(50)
            slot = slot_of(name)
            source = own_redis_cluster.owner_of(slot)
            target = next(each for each in own_redis_cluster.masters if each is not source)
            own_redis_cluster.move(slot, target)
        load.go_on(200)
        load.finish()
    assert load.lost == []
    assert max(load.got.values()) == 1


def test_a_master_is_killed_under_load(
    own_redis_cluster: RedisCluster, unique: str, long: bool
) -> None:
    names = [f"{unique}-{number}" for number in range(20)]
    with Load(own_redis_cluster.urls, names) as load:
        for _ in range(3 if long else 1):
            load.go_on(500)
            own_redis_cluster.masters[0].kill()
            # Else it would be the master again, and empty: it has nothing on disk.
            until(lambda: len(own_redis_cluster.masters) == 3, SOON)
            load.go_on(2000)
            own_redis_cluster.mend()
        load.finish()
    assert load.lost == [], "a node that is lost does not end the connection"
