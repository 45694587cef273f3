"""The exchanges and bindings of a cluster.

An exchange is declared in the partition of its name.  The bindings of a queue are in that of the queue.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from greenconn.broker.topology_port import ExchangeRecord, Row
from greenconn.transport.redis.commands import Commands, call_together
from greenconn.transport.redis.partition import Partition
from greenconn.transport.redis.topology import LinkRecords
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.wire.resp import pack

if TYPE_CHECKING:
    from greenconn.transport.redis.cluster.placement import ClusterPlacement
    from greenconn.transport.redis.link import RedisLink


class ClusterRecords(LinkRecords):
    """The records of a cluster, as one link reads them.

    Arguments:
        partitions: of the link.
        link: has what is known of exchanges.
    """

    def __init__(self, partitions: ClusterPlacement, link: RedisLink) -> None:
        self._partitions = partitions
        self._link = link
        #: Exchange -> the tags under which it has bindings, as they were read last.
        self._tags: dict[str, frozenset[str]] = {}
        #: Exchange -> the bindings that were returned last.
        self._read: dict[str, tuple[Row, ...]] = {}

    # -- exchanges

    def get(self, exchange: str) -> ExchangeRecord | None:
        return self._partitions.of(exchange).records.get(exchange)

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        self._partitions.of(exchange).records.put(exchange, record)

    def delete(self, exchange: str) -> None:
        home = self._partitions.of(exchange)
        for partition in self._bound(exchange):
            if partition is not home:
                partition.records.delete(exchange)
        home.records.delete(exchange)
        key = home.commands.keys.exchange_partitions(exchange)
        home.commands.call(pack(b"DEL", key), what=f"deleting exchange {exchange!r}")
        self._tags.pop(exchange, None)
        self._read.pop(exchange, None)

    def _bound(self, exchange: str) -> list[Partition]:
        """Return the partitions in which an exchange has, or had, bindings of queues.  May switch."""
        home = self._partitions.of(exchange).commands
        command = pack(b"SMEMBERS", home.keys.exchange_partitions(exchange))
        tags = frozenset(each.decode() for each in home.call(command, what="routing"))
        self._tags[exchange] = tags
        return [self._partitions.partition(each) for each in sorted(tags)]

    # -- bindings

    def rows(self, exchange: str) -> Sequence[Row] | None:
        home = self._partitions.of(exchange)
        if self._link.is_broadcast(exchange):
            return home.records.rows(exchange)
        # All that is needed, at once: where to look seldom changes.
        keys, known = home.commands.keys, self._tags.get(exchange, frozenset())
        asked = [
            (home.commands, pack(b"SMEMBERS", keys.exchange_partitions(exchange))),
            (home.commands, pack(b"SMEMBERS", keys.onward(exchange))),
            (home.commands, pack(b"EXISTS", keys.exchange(exchange))),
        ]
        tags, others, is_there, *tables = call_together(
            [*asked, *self._tables(exchange, known)], "routing"
        )
        members = {member for table in tables for member in table}
        now = frozenset(each.decode() for each in tags)
        if now != known:
            for table in call_together(self._tables(exchange, now - known), "routing"):
                members.update(table)
            self._tags[exchange] = now
        if not (is_there or others or members or exchange in PREDECLARED):
            self._read.pop(exchange, None)
            return None
        records = home.records
        rows = (*records.rows_of(sorted(members)), *records.onward_rows(sorted(others)))
        if self._read.get(exchange) != rows:
            self._read[exchange] = rows
        return self._read[exchange]

    def _tables(self, exchange: str, tags: Collection[str]) -> list[tuple[Commands, bytes]]:
        """Return the commands that read the bindings in some partitions."""
        all_commands = [self._partitions.partition(each).commands for each in sorted(tags)]
        return [(each, pack(b"SMEMBERS", each.keys.bindings(exchange))) for each in all_commands]

    def has_rows(self, exchange: str) -> bool:
        home = self._partitions.of(exchange)
        return home.records.has_rows(exchange) or any(
            each.records.has_rows(exchange) for each in self._bound(exchange)
        )

    def add(self, exchange: str, row: Row) -> None:
        home = self._partitions.of(exchange)
        if row.to_exchange:
            home.records.add_onward(exchange, row)
            self._partitions.of(row.queue).records.add_source(row.queue, exchange)
            return
        partition = self._partitions.of(row.queue)
        # Before the binding, so that it is never overlooked.  It stays when the binding goes.
        key = home.commands.keys.exchange_partitions(exchange)
        home.commands.call(pack(b"SADD", key, partition.tag), what="binding")
        partition.records.add(exchange, row)

    def remove(self, exchange: str, row: Row) -> bool:
        name = exchange if row.to_exchange else row.queue
        return self._partitions.of(name).records.remove(exchange, row)

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        records = self._partitions.of(destination).records
        if not is_exchange:
            return records.remove_to(destination, is_exchange=False)
        sources = records.sources(destination)
        for each in sources:
            self._partitions.of(each).records.remove_onward(each, destination)
        records.forget_sources(destination)
        return sources

    def table(self, exchange: str) -> list[tuple[str, str, str]]:
        return []  # no program of kombu uses a cluster

    def bound_field(self, exchange: str, row: Row) -> bytes:
        return self._partitions.of(row.queue).records.bound_field(exchange, row)
