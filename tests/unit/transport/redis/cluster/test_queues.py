"""Queues of several partitions, and their consumers, over scripted nodes."""

from __future__ import annotations

import pytest

from greenconn.transport.redis.errors import NodeLost
from greenconn.transport.redis.scripts import CLAIM
from tests.fix_redis_nodes import (
    Answer,
    ClusterLinks,
    ScriptedCluster,
    array,
    bulk,
    empty,
    on_node,
    runs,
    with_sets,
)

[HERE, NEAR], [THERE] = on_node(0, 2), on_node(1)


def test_queues_are_looked_for_at_their_nodes(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, (first, second) = cluster_links(), cluster.nodes
    first.answer = with_sets({})
    assert link.connection.connection.queues.existing({HERE: (), THERE: (), NEAR: ()}) == [
        HERE,
        NEAR,
    ]
    for node, queues in ((first, (HERE, NEAR)), (second, (THERE,))):
        asked = " ".join(node.got)
        found = [each for each in (HERE, NEAR, THERE) if f"{link.prefix(each)}{each}" in asked]
        assert sorted(found) == sorted(queues)


def test_queues_of_a_slot_that_is_not_served_are_not_taken_for_gone(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    """Their messages would be dropped as if nothing were bound."""
    link = cluster_links(reply_timeout=1.0)
    cluster.nodes[1].answer = lambda command: b"-CLUSTERDOWN Hash slot not served\r\n"
    with pytest.raises(NodeLost, match="CLUSTERDOWN"):
        link.connection.connection.queues.existing({HERE: (), THERE: ()})
    cluster.nodes[1].answer = empty
    assert link.connection.connection.queues.existing({HERE: (), THERE: ()}) == []


def test_a_message_is_taken_where_its_queue_is(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, (first, second) = cluster_links(), cluster.nodes
    usual = with_sets({})

    def answer(command: str) -> Answer:
        if runs(CLAIM, command) and link.prefix(THERE) in command:
            return array(bulk('{"body": "x"}'))
        return usual(command)

    first.answer = second.answer = answer
    channel = link.connection.channel()
    message = channel.basic_get(THERE)
    assert message.delivery_tag.startswith(link.handle(THERE, 0)[:-1])
    assert link.placement.of_handle(message.delivery_tag) is link.placement.of(THERE)
    assert not any(link.prefix(THERE) in each for each in first.got)
