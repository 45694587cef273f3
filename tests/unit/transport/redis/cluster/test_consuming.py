"""Consumers of queues in several partitions, over scripted nodes."""

from __future__ import annotations

import pytest

from greenconn.exceptions import NotFound
from greenconn.transport.redis.scripts import CLAIM
from tests.fix_redis_nodes import (
    Answer,
    ClusterLinks,
    ScriptedCluster,
    array,
    bulk,
    on_node,
    runs,
    with_sets,
)

[HERE], [THERE] = on_node(0), on_node(1)


def test_a_message_is_taken_where_its_queue_is(
    cluster_links: ClusterLinks, scripted_cluster: ScriptedCluster
) -> None:
    link, (first, second) = cluster_links(), scripted_cluster.nodes
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


def test_a_queue_that_is_nowhere_is_not_found(cluster_links: ClusterLinks) -> None:
    link = cluster_links()
    with pytest.raises(NotFound, match=THERE):
        link.connection.channel().basic_consume(THERE, False, lambda message: None, "tag")
    assert link.placement.of(THERE).feeds == {}
