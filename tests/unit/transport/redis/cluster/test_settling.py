"""Settling of messages that are held in several partitions, over scripted nodes."""

from __future__ import annotations

from typing import Any

import pytest

from greenconn.broker.port import Claimed, Entry, Settlement, SettleRequest
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.errors import NodeLost
from greenconn.wire.resp import ErrorReply, pack
from tests.fix_redis_nodes import Answer, ClusterLink, ClusterLinks, ScriptedCluster, empty, on_node
from tests.fix_wires import until

CAME = 30.0
(HERE, NEAR), (THERE, FAR) = on_node(0, 2), on_node(1, 2)
RAW = b'{"body": "x"}'


def rejected(link: ClusterLink, number: int, *to: str) -> SettleRequest:
    """Return the request of a message of HERE that becomes a dead letter in some queues."""
    message = Delivery(None, link.handle(HERE, number), number, RAW, HERE)
    # No envelope: the message as it is.
    return SettleRequest(message, Settlement.REJECT, entries=[Entry(name, {}) for name in to])


def acked(handle: str) -> SettleRequest:
    return SettleRequest(Claimed("", None, handle), Settlement.ACK)


def removed_already(command: str) -> Answer:
    """Return what a node answers that does not hold what is removed."""
    return b":0\r\n" if command.startswith(("HDEL", "ZREM")) else empty(command)


def test_acks_go_where_the_messages_are_held(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, outcomes = cluster_links(), list[Any]()
    handles = [link.handle(*each) for each in ((HERE, 1), (THERE, 1), (HERE, 2), (NEAR, 1))]
    for part in link.placement.settler.parts([acked(each) for each in handles]):
        link.placement.settler.settle(part, outcomes.append)
    until(lambda: outcomes == [None] * 3, CAME)
    first, second = cluster.nodes
    assert sorted(each for each in first.got if each.startswith("HDEL")) == sorted(
        [
            f"HDEL {link.prefix(HERE)}unacked {handles[0]} {handles[2]}",
            f"HDEL {link.prefix(NEAR)}unacked {handles[3]}",
        ]
    )
    assert second.names() == ["HDEL", "ZREM"]


def test_an_ack_that_a_lost_socket_had_carried_out_is_not_late(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, outcomes = cluster_links(), list[Any]()
    node = cluster.nodes[0]
    node.answer = lambda command: None
    link.placement.settler.settle([acked(link.handle(HERE, 1))], outcomes.append)
    until(lambda: node.names() == ["HDEL", "ZREM"], CAME)
    node.answer = removed_already
    node.peer.drop()
    until(lambda: outcomes, CAME)
    assert outcomes == [None]


def test_a_dead_letter_is_stored_elsewhere_before_it_is_removed_here(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, outcomes = cluster_links(), list[Any]()
    here, there = cluster.nodes
    there.answer = lambda command: None
    link.placement.settler.settle([rejected(link, 1, HERE, THERE)], outcomes.append)
    until(lambda: there.got, CAME)
    assert there.got == [f"LPUSH {link.prefix(THERE)}{THERE} {RAW.decode()}"]
    link.placement.of(HERE).commands.call(pack("ECHO"))
    assert (here.names(), outcomes) == (["ECHO"], [])
    there.say(b":1\r\n")
    until(lambda: outcomes, CAME)
    assert outcomes == [None]
    move = here.got[-1]
    assert move.startswith("EVAL")
    assert f" {link.prefix(HERE)}{HERE} " in move, "the copy that stays in the partition"
    assert link.prefix(THERE) not in move, "its keys are in another slot"


@pytest.mark.parametrize("text", ["OOM no memory", "WRONGTYPE no list", "NOPERM not you"])
def test_a_message_whose_dead_letter_is_refused_stays_held(
    cluster_links: ClusterLinks, cluster: ScriptedCluster, text: str
) -> None:
    link, outcomes = cluster_links(), list[Any]()
    here, there = cluster.nodes
    there.refuse(text, first="LPUSH")
    link.placement.settler.settle([rejected(link, 1, THERE, FAR)], outcomes.append)
    until(lambda: outcomes, CAME)
    assert [(type(each), str(each)) for each in outcomes] == [(ErrorReply, text)]
    assert there.names() == ["LPUSH", "LPUSH"]
    assert here.got == []


def test_a_message_whose_dead_letter_was_lost_on_its_way_stays_held(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    """Nobody knows whether the other node has it: the one who is asked decides, not the slot."""
    link, outcomes = cluster_links(), list[Any]()
    here, there = cluster.nodes
    there.answer = lambda command: None
    link.placement.settler.settle([rejected(link, 1, THERE)], outcomes.append)
    until(lambda: there.names() == ["LPUSH"], CAME)
    there.answer = empty
    there.peer.drop()
    until(lambda: outcomes, CAME)
    assert isinstance(outcomes[0], NodeLost)
    assert (here.got, there.names().count("LPUSH")) == ([], 1)
    link.placement.settler.settle([rejected(link, 1, THERE)], outcomes.append)
    until(lambda: len(outcomes) == 2, CAME)
    assert outcomes[1] is None
    assert there.names().count("LPUSH") == 2


def test_a_dead_letter_follows_a_slot_that_has_moved(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, outcomes = cluster_links(), list[Any]()
    here, there = cluster.nodes
    there.refuse(f"MOVED 1 {here.place.host}:{here.place.port}", first="LPUSH")
    link.placement.settler.settle([rejected(link, 1, THERE)], outcomes.append)
    until(lambda: outcomes, CAME)
    assert outcomes == [None]
    assert here.names()[0] == "LPUSH"
    assert here.names()[-1].startswith("EVAL")


def test_a_dead_letter_for_a_slot_that_is_not_served_is_given_up(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, outcomes = cluster_links(reply_timeout=1.0), list[Any]()
    here, there = cluster.nodes
    there.answer = lambda command: b"-CLUSTERDOWN Hash slot not served\r\n"
    link.placement.settler.settle([rejected(link, 1, THERE)], outcomes.append)
    until(lambda: outcomes, CAME)
    assert isinstance(outcomes[0], NodeLost)
    assert "CLUSTERDOWN" in str(outcomes[0])
    assert here.got == []


def test_leases_are_renewed_where_messages_are_held_and_where_the_link_is_known(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, outcomes = cluster_links(), list[Any]()
    settler = link.placement.settler
    settler.renew([], outcomes.append)
    assert outcomes == [None], "nothing was held anywhere"
    link.placement.of(THERE).keep_alive()
    settler.renew([link.handle(HERE, 1)], outcomes.append)
    until(lambda: len(outcomes) == 2, CAME)
    assert outcomes[1] == []
    for queue, node in zip((HERE, THERE), cluster.nodes, strict=True):
        assert any(each.startswith("EVAL") and link.prefix(queue) in each for each in node.got)


def test_a_renewal_that_one_node_refuses_is_refused(
    cluster_links: ClusterLinks, cluster: ScriptedCluster
) -> None:
    link, outcomes = cluster_links(), list[Any]()
    cluster.nodes[1].refuse("READWRITE x", first="EVAL")
    handles = [link.handle(HERE, 1), link.handle(THERE, 1)]
    link.placement.settler.renew(handles, outcomes.append)
    until(lambda: outcomes, CAME)
    assert [str(each) for each in outcomes] == ["READWRITE x"]
