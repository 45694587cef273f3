"""The nodes of a cluster that a test scripts."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.green.deadline import Deadline
from greenconn.transport.redis.errors import LinkLost, NotRedis
from greenconn.transport.redis.nodes import AnyNode, ClusterUnreachable, Place, place_named
from greenconn.transport.redis.pipeline import ENDLESS, ignore
from greenconn.transport.redis.server import Address, Login, open_pipeline
from greenconn.wire.resp import ErrorReply, pack
from tests.fix_redis_nodes import ScriptedCluster
from tests.fix_wires import until

CAME = 30.0


def test_the_map_says_where_a_slot_is(cluster: ScriptedCluster) -> None:
    first, second = cluster.nodes
    cluster.ranges = [(0, 99, first), (100, 199, second)]
    nodes = cluster.client()
    assert nodes.place_of(0) is None
    nodes.refresh()
    asked = [nodes.place_of(slot) for slot in (0, 99, 100, 199, 200)]
    assert asked == [first.place, first.place, second.place, second.place, None]
    assert nodes.places() == [first.place, second.place]


def test_a_node_that_says_where_a_slot_has_moved_is_believed_until_the_next_map(
    cluster: ScriptedCluster,
) -> None:
    first, second = cluster.nodes
    nodes = cluster.client()
    nodes.refresh()
    nodes.note_moved(7, second.place)
    assert [nodes.place_of(7), nodes.place_of(8)] == [second.place, first.place]
    assert nodes.places() == [first.place, second.place]
    nodes.refresh()
    assert nodes.place_of(7) == first.place


@pytest.mark.parametrize("host", ["", "?"])
def test_a_node_without_a_name_is_where_it_was_asked(cluster: ScriptedCluster, host: str) -> None:
    cluster.host = host
    nodes = cluster.client()
    nodes.refresh()
    assert nodes.place_of(0) == (None if host else cluster.nodes[0].place)


def test_another_seed_is_asked_when_the_first_is_away(cluster: ScriptedCluster) -> None:
    first, second = cluster.nodes
    cluster.serve_all(second)
    first.peer.stop()
    nodes = cluster.client([first, second])
    nodes.refresh()
    assert nodes.place_of(0) == second.place


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_silent_seed_takes_its_share_and_a_slow_one_all_of_the_time(
    cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    first, second = cluster.nodes
    nodes = cluster.client([first, second])
    nodes.connect_timeout = 0.2
    asked: list[tuple[int, float | None]] = []
    ask = nodes._ask

    def ask_slowly(address: Address, deadline: Deadline) -> None:
        asked.append((address.port, deadline.timeout))
        if (address.port == first.place.port or is_slow) and len(asked) < 3:
            gevent.sleep(deadline.left() or 0.0)
            raise TimeoutError("no reply")
        ask(address, Deadline(CAME))

    monkeypatch.setattr(nodes, "_ask", ask_slowly)
    nodes.refresh()
    assert [port for port, _ in asked[:2]] == [first.place.port, second.place.port]
    assert (asked[0][1] or 0.0) <= 0.1
    assert asked[2:] == ([(first.place.port, 0.2)] if is_slow else [])


def test_a_silent_seed_may_take_all_of_the_time_of_an_attempt_to_connect(
    cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt begins with another one."""
    nodes = cluster.client(cluster.nodes)
    asked: list[Address] = []

    def be_silent(address: Address, deadline: Deadline) -> None:
        asked.append(address)
        gevent.sleep(deadline.left() or 0.0)
        raise TimeoutError("no reply")

    monkeypatch.setattr(nodes, "_ask", be_silent)
    with pytest.raises(TimeoutError):
        nodes.refresh(Deadline(0.1))
    until(lambda: not nodes._flight.is_running("slots"))
    assert [each.port for each in asked] == [cluster.nodes[0].place.port]


def test_all_that_were_asked_are_named_when_none_answers(cluster: ScriptedCluster) -> None:
    for each in cluster.nodes:
        each.peer.stop()
    nodes = cluster.client(cluster.nodes)
    with pytest.raises(ClusterUnreachable, match="no node of the cluster") as unreachable:
        nodes.refresh()
    assert all(str(each.place.port) in str(unreachable.value) for each in cluster.nodes)
    with pytest.raises(ClusterUnreachable):
        AnyNode(nodes).open(ENDLESS, ignore, ignore)


def test_the_error_of_a_lone_seed_is_raised_as_it_is(cluster: ScriptedCluster) -> None:
    cluster.nodes[0].peer.stop()
    with pytest.raises(ConnectionRefusedError):
        cluster.client().refresh()


def test_a_server_that_is_no_node_is_named(cluster: ScriptedCluster) -> None:
    cluster.slots = lambda: b":5\r\n"  # type: ignore[method-assign]
    with pytest.raises(NotRedis, match="CLUSTER SLOTS: 5"):
        cluster.client().refresh()


def test_one_socket_is_shared_until_it_is_lost(cluster: ScriptedCluster) -> None:
    first = cluster.nodes[0]
    nodes = cluster.client()
    nodes.refresh()
    socket = nodes.open(first.place)
    assert nodes.open(first.place) is socket
    assert list(nodes.pipelines()) == [socket]
    first.peer.drop()
    until(lambda: cluster.lost == [socket], CAME)
    assert list(nodes.pipelines()) == []
    again = nodes.open(first.place)
    assert again.call(pack("ECHO", "x")) == b"ECHO x"


def test_the_socket_to_a_node_without_slots_is_ended(cluster: ScriptedCluster) -> None:
    """It may be silent, so that it cannot say so itself."""
    first, second = cluster.nodes
    nodes = cluster.client([second])
    nodes.refresh()
    socket = nodes.open(first.place)
    cluster.serve_all(second)
    nodes.refresh()
    until(lambda: cluster.lost == [socket], CAME)
    assert isinstance(socket.lost, LinkLost)
    assert "serves no slots" in str(socket.lost)


def test_a_further_socket_to_one_node_ends_as_that_for_commands(cluster: ScriptedCluster) -> None:
    first, second = cluster.nodes
    nodes = cluster.client([second])
    nodes.refresh()
    lost: list[LinkLost] = []
    socket, _ = nodes.open_further(first.place, ignore, lost.append)
    assert list(nodes.pipelines()) == [socket]
    assert socket is not nodes.open(first.place)
    cluster.serve_all(second)
    nodes.refresh()
    until(lambda: lost, CAME)
    assert "serves no slots" in str(lost[0])
    other, _ = nodes.open_further(second.place, ignore, lost.append)
    assert list(nodes.pipelines()) == [other]
    nodes.close()
    assert len(lost) == 1
    assert other.lost is not None


def test_the_node_that_a_reply_names(cluster: ScriptedCluster) -> None:
    """Without a host it is at the address that was asked."""
    nodes = cluster.client()
    nodes.refresh()
    socket = nodes.open(cluster.nodes[0].place)
    assert place_named(ErrorReply("MOVED 42 ::1:7000"), socket) == Place("::1", 7000)
    assert place_named(ErrorReply("ASK 42 :7001"), socket) == Place("127.0.0.1", 7001)


def test_a_further_socket_leads_to_any_node(cluster: ScriptedCluster) -> None:
    first, second = cluster.nodes
    nodes = cluster.client([first, second])
    first.peer.stop()
    pipeline, welcome = AnyNode(nodes).open(ENDLESS, ignore, ignore)
    assert (welcome.protocol, pipeline.call(pack("ECHO", "x"))) == (3, b"ECHO x")
    assert second.got == ["ECHO x"]
    pipeline.close()


def test_a_silent_node_leaves_time_for_the_others_to_open_a_further_socket(
    cluster: ScriptedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = cluster.client(cluster.nodes)
    asked: list[int] = []

    def open_slowly(address: Address, login: Login, deadline: Deadline, *further: Any) -> Any:
        asked.append(address.port)
        if len(asked) == 1:
            gevent.sleep(deadline.left() or 0.0)
            raise TimeoutError("no reply")
        assert not deadline.has_ended
        return open_pipeline(address, login, Deadline(CAME), *further)

    monkeypatch.setattr("greenconn.transport.redis.nodes.open_pipeline", open_slowly)
    pipeline, _ = AnyNode(nodes).open(Deadline(1.0), ignore, ignore)
    pipeline.close()
    assert sorted(asked) == sorted(each.place.port for each in cluster.nodes)


def test_nothing_is_opened_for_a_client_that_was_closed(cluster: ScriptedCluster) -> None:
    nodes = cluster.client()
    nodes.refresh()
    nodes.close()
    with pytest.raises(LinkLost, match="closed"):
        nodes.open(cluster.nodes[0].place)
    with pytest.raises(LinkLost, match="closed"):
        nodes.open_further(cluster.nodes[0].place, ignore, ignore)
    assert Place("127.0.0.1", 1) not in nodes.places()
