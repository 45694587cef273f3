"""Exchanges whose bindings are in several partitions, over scripted nodes."""

from __future__ import annotations

import gevent
import pytest

from greenconn.broker.exchanges import Row
from greenconn.transport.redis.errors import NodeLost
from tests.fix_redis_nodes import (
    ClusterLink,
    ClusterLinks,
    ScriptedCluster,
    ScriptedNode,
    on_node,
    with_sets,
)
from tests.fix_wires import until

CAME = 30.0
SEP = "\x06\x16"
[NEWS], [FAR, FARTHER] = on_node(0), on_node(1, 2)


def row(queue: str) -> Row:
    """Return the binding of a queue."""
    return Row("key", "", queue)


def bound(link: ClusterLink, *queues: str) -> dict[str, list[str]]:
    """Return the sets of a cluster in which queues are bound to the exchange NEWS."""
    tags = [link.placement.of(each).tag for each in queues]
    tables = {
        f"{link.prefix(each)}_kombu.binding.{NEWS}": [f"key{SEP}{SEP}{each}"] for each in queues
    }
    return {f"{link.prefix(NEWS)}greenconn.partitions.{NEWS}": tags, **tables}


def answer_with(cluster: ScriptedCluster, sets: dict[str, list[str]]) -> None:
    """Let all nodes have these sets."""
    for node in cluster.nodes:
        node.answer = with_sets(sets)


def test_bindings_are_read_where_the_queues_are(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link = cluster_links()
    answer_with(cluster, bound(link, NEWS, FAR))
    records = link.connection.connection.topology
    rows = records.rows(NEWS)
    assert rows is not None
    assert sorted(rows) == sorted([row(NEWS), row(FAR)])
    assert records.rows(NEWS) is rows, "else all routes were made anew for each message"


def test_a_partition_that_was_unknown_is_asked_too(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link = cluster_links()
    records = link.connection.connection.topology
    for queues in ([FAR], [FAR, FARTHER], [FARTHER], []):
        answer_with(cluster, bound(link, *queues))
        rows = records.rows(NEWS)
        assert rows is not None
        assert sorted(rows) == sorted(map(row, queues))


def test_an_exchange_that_is_nowhere_is_none(cluster_links: ClusterLinks) -> None:
    records = cluster_links().connection.connection.topology
    assert records.rows(NEWS) is None
    assert records.rows("amq.direct") == ()
    assert not records.has_rows(NEWS)


def test_a_binding_elsewhere_counts(cluster_links: ClusterLinks, cluster: ScriptedCluster) -> None:
    link, (home, _) = cluster_links(), cluster.nodes
    sets = bound(link, FAR)

    def answer(command: str) -> bytes | None:
        return b":0\r\n" if command.startswith("EXISTS") else with_sets(sets)(command)

    home.answer = answer
    assert not link.connection.connection.topology.has_rows(NEWS), "its table is empty"
    cluster.nodes[1].answer = with_sets(sets)
    assert link.connection.connection.topology.has_rows(NEWS)


def begins(node: ScriptedNode, *words: str) -> bool:
    """Return whether a node got a command that begins so."""
    return any(each.startswith(" ".join(words)) for each in node.got)


def test_where_to_look_is_stored_before_the_binding(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    """Else a publisher might overlook the binding."""
    link, (home, other) = cluster_links(), cluster.nodes
    answer_with(cluster, {})
    home.answer = lambda command: None
    adding = gevent.spawn(link.connection.connection.topology.add, NEWS, row(FAR))
    key = f"{link.prefix(NEWS)}greenconn.partitions.{NEWS}"
    until(lambda: begins(home, "SADD", key, link.placement.of(FAR).tag), CAME)
    assert other.got == []
    home.say(b":1\r\n")
    adding.get(timeout=CAME)
    assert begins(other, "EVAL")


def test_a_binding_is_not_made_where_that_cannot_be_stored(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, (home, other) = cluster_links(reply_timeout=1.0), cluster.nodes
    home.answer = lambda command: b"-CLUSTERDOWN Hash slot not served\r\n"
    with pytest.raises(NodeLost, match="CLUSTERDOWN"):
        link.connection.connection.topology.add(NEWS, row(FAR))
    assert other.got == []


def test_the_end_of_an_exchange_ends_its_bindings_everywhere(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, (home, other) = cluster_links(), cluster.nodes
    answer_with(cluster, bound(link, FAR, FARTHER))
    link.connection.connection.topology.delete(NEWS)
    for queue in (FAR, FARTHER):
        assert begins(other, "HDEL", f"{link.prefix(queue)}greenconn.bound.{queue}")
    assert home.got[-1] == f"DEL {link.prefix(NEWS)}greenconn.partitions.{NEWS}"
    assert "DEL" in other.names()


def test_exchanges_in_different_partitions_are_bound_and_unbound(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, (home, other) = cluster_links(), cluster.nodes
    answer_with(cluster, {})
    records = link.connection.connection.topology
    onward = Row("key", "", FAR, {}, to_exchange=True)
    records.add(NEWS, onward)
    assert (home.names(), other.names()) == (["SADD"], ["SADD"])
    assert other.got[0].endswith(f" {NEWS}")
    member = home.got[0].split(" ", 2)[2]
    sets = {home.got[0].split(" ")[1]: [member], other.got[0].split(" ")[1]: [NEWS]}
    answer_with(cluster, sets)
    assert records.rows(NEWS) == (onward,)
    assert records.remove_to(FAR, is_exchange=True) == [NEWS]
    assert begins(home, "SREM", home.got[0].split(" ")[1])
    assert begins(other, "DEL", other.got[0].split(" ")[1])
