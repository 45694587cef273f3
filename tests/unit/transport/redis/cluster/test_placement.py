"""The partitions of a Redis Cluster: evenly spread, the same in every program, and mended by it."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from greenconn.transport.redis.cluster import PARTITIONS, _tags, tag_of
from greenconn.wire.resp import pack
from tests.fix_redis_nodes import (
    NOTHING,
    Answer,
    ClusterLinks,
    ScriptedCluster,
    array,
    bulk,
    empty,
    on_node,
)
from tests.fix_wires import until

CAME = 30.0


def test_each_partition_has_a_part_of_the_slots_of_its_own() -> None:
    parts = [key_slot(tag.encode()) * PARTITIONS // 16384 for tag in _tags()]
    assert parts == list(range(PARTITIONS))


def test_a_tag_leads_a_key_into_its_slot() -> None:
    tag = tag_of("orders")
    assert key_slot(b"{%b}:queue.orders" % tag.encode()) == key_slot(tag.encode())


@pytest.mark.parametrize(("one", "other"), [("{orders}.new", "{orders}.done"), ("{a}", "a")])
def test_names_with_the_same_hash_tag_are_together(one: str, other: str) -> None:
    assert tag_of(one) == tag_of(other)


def test_programs_of_all_versions_agree() -> None:
    """Another result would divide what is in a cluster already."""
    assert (tag_of("orders"), tag_of("mail"), tag_of("")) == (
        tag_of("orders"),
        _tags()[key_slot(b"mail", PARTITIONS)],
        _tags()[0],
    )


def test_what_a_lost_node_held_is_looked_for_until_it_can_be(
    cluster_links: ClusterLinks, cluster: ScriptedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The node that has the slot now may refuse it for longer than one command waits."""
    [queue] = on_node(0)
    link, node = cluster_links(reply_timeout=1.0), cluster.nodes[0]
    partition = link.placement.of(queue)
    partition.commands.call(pack("ECHO"))
    field = link.handle(queue, partition.claims.take_numbers(1))
    is_served = False

    def answer(command: str) -> Answer:
        if not command.startswith(("ZSCAN", "HMGET", "ZSCORE")):
            return empty(command)
        if not is_served:
            return b"-CLUSTERDOWN Hash slot not served\r\n"
        if command.startswith("ZSCAN"):
            return array(bulk("0"), array(bulk(field), bulk("1")))
        return array(bulk(f'[{{"body": "x"}}, "", "{queue}"]')) if "HMGET" in command else NOTHING

    node.answer = answer
    node.peer.drop()
    until(lambda: "CLUSTERDOWN" in caplog.text, CAME, "the end of the first attempt")
    is_served = True
    until(lambda: "1 messages whose delivery" in caplog.text, CAME)
    assert any(each.startswith("EVAL") and field in each for each in node.got)
