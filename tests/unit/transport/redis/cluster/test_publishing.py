"""Messages for queues of several partitions, over scripted nodes."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from redis.exceptions import ResponseError

from greenconn.exceptions import PublishTimeout
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
[HERE], [THERE, FAR] = on_node(0), on_node(1, 2)


class Sender:
    """A channel that publishes."""

    def __init__(self, link: ClusterLink) -> None:
        self._channel: Any = link.connection.channel()

    def publish(self, queue: str, *copies: str, timeout: float | None = None) -> None:
        """Publish a message to a queue, with copies for others.  May switch."""
        headers = {"CC": list(copies)} if copies else {}
        message = self._channel.prepare_message("x", headers=headers)
        self._channel.basic_publish(message, "", queue, timeout=timeout)


def pushes(node: ScriptedNode) -> list[str]:
    """Return the keys of the lists to which a node was told to append."""
    return [each.split(" ", 2)[1] for each in node.got if each.startswith("LPUSH")]


@pytest.fixture
def link(cluster_links: ClusterLinks, cluster: ScriptedCluster) -> ClusterLink:
    """A link to nodes that have all queues."""
    made = cluster_links(reply_timeout=CAME)
    for node in cluster.nodes:
        node.answer = with_sets({})
    return made


def test_each_copy_goes_where_its_queue_is(link: ClusterLink, cluster: ScriptedCluster) -> None:
    Sender(link).publish(HERE, THERE, FAR)
    first, second = cluster.nodes
    assert pushes(first) == [f"{link.prefix(HERE)}{HERE}"]
    assert pushes(second) == [f"{link.prefix(each)}{each}" for each in (THERE, FAR)]


def test_a_publish_returns_when_all_copies_are_stored(
    link: ClusterLink, cluster: ScriptedCluster
) -> None:
    sender, (first, second) = Sender(link), cluster.nodes
    sender.publish(HERE, THERE)
    usual = with_sets({})
    second.answer = lambda command: None if command.startswith("LPUSH") else usual(command)
    publishing = gevent.spawn(sender.publish, HERE, THERE)
    until(lambda: (len(pushes(first)), len(pushes(second))) == (2, 2), CAME)
    sender.publish(HERE)
    assert not publishing.ready()
    second.say(b":1\r\n")
    publishing.get(timeout=CAME)
    assert publishing.successful()


def test_a_copy_that_is_refused_is_the_publisher_s_error(
    link: ClusterLink, cluster: ScriptedCluster
) -> None:
    first, second = cluster.nodes
    usual = with_sets({})
    second.answer = lambda command: (
        b"-OOM no memory\r\n" if command.startswith("LPUSH") else usual(command)
    )
    with pytest.raises(ResponseError, match="OOM"):
        Sender(link).publish(HERE, THERE, FAR)
    assert (len(pushes(first)), len(pushes(second))) == (1, 2)


def test_a_message_is_not_sent_again_when_its_node_is_lost(
    link: ClusterLink, cluster: ScriptedCluster
) -> None:
    """The node may have stored it."""
    sender, (first, second) = Sender(link), cluster.nodes
    usual = with_sets({})
    second.answer = lambda command: None if command.startswith("LPUSH") else usual(command)
    publishing = gevent.spawn(sender.publish, HERE, THERE)
    until(lambda: pushes(first) and pushes(second), CAME)
    second.answer = usual
    second.peer.drop()
    with pytest.raises(NodeLost):
        publishing.get(timeout=CAME)
    sender.publish(HERE, THERE)
    assert (len(pushes(first)), len(pushes(second))) == (2, 2)


def test_a_message_for_a_slot_on_its_way_follows_the_keys(
    link: ClusterLink, cluster: ScriptedCluster
) -> None:
    first, second = cluster.nodes
    second.refuse(f"ASK 1 {first.place.host}:{first.place.port}", first="LPUSH")
    Sender(link).publish(THERE)
    assert first.names()[-2:] == ["ASKING", "LPUSH"]
    Sender(link).publish(THERE)
    assert len(pushes(second)) == 2, "the slot itself is where it was"


@pytest.mark.parametrize("copies", [(), (HERE,)], ids=["alone", "with a copy elsewhere"])
def test_a_slot_that_is_not_served_holds_up_its_own_queues_only(
    link: ClusterLink, cluster: ScriptedCluster, copies: tuple[str, ...]
) -> None:
    sender, (first, second) = Sender(link), cluster.nodes
    second.answer = lambda command: b"-CLUSTERDOWN Hash slot not served\r\n"
    with pytest.raises(PublishTimeout):
        sender.publish(THERE, timeout=1.0)
    assert not pushes(first)
    waiting = gevent.spawn(sender.publish, THERE, *copies)
    sender.publish(HERE)
    assert not waiting.ready()
    second.answer = with_sets({})
    waiting.get(timeout=CAME)
    assert pushes(second)[-1] == f"{link.prefix(THERE)}{THERE}"
    # The copy may be stored first: when the slot was being tried again as the publisher came.
    assert pushes(first) == [f"{link.prefix(HERE)}{HERE}"] * (1 + len(copies))
