"""The way of commands to a slot whose node changes, over scripted nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenconn.green.deadline import Deadline
from greenconn.transport.redis.errors import LinkLost, NodeLost
from greenconn.transport.redis.nodes import SlotPipeline, SlotState, may_repeat
from greenconn.transport.redis.scripts import CLAIM, MOVE, PUSH, Scripts
from greenconn.wire.resp import pack
from tests.fix_redis_nodes import Answer, ScriptedCluster, ScriptedNode, bulk, plain
from tests.fix_wires import until

CAME = 30.0
SLOT = 42
Slots = Callable[..., "Watched"]


class Watched(SlotPipeline):
    """A slot, and what its callbacks got."""

    replies: list[str]
    repeated: list[str]
    moves: list[bool]
    ends: list[BaseException]

    def send(self, *words: str) -> None:
        """Send a command; its reply goes to ``replies``."""

        def take(reply: Any) -> None:
            self.replies.append(plain(reply))
            if self.is_repeated:
                self.repeated.append(words[-1])

        self.post(pack(*words), take)

    def await_replies(self, *expected: str) -> None:
        """Wait until these came, in this order.  May switch."""
        until(lambda: len(self.replies) >= len(expected), CAME, f"{expected}")
        assert self.replies == list(expected)


@pytest.fixture
def slots(cluster: ScriptedCluster) -> Iterator[Slots]:
    """Makes slots: ``slots(reply_timeout=...)``."""
    made: list[Watched] = []

    def make(reply_timeout: float | None = CAME) -> Watched:
        moves: list[bool] = []
        ends: list[BaseException] = []
        nodes = cluster.client(cluster.nodes)
        slot = Watched(
            nodes, SLOT, "redis+cluster://test", reply_timeout, ends.append, moves.append
        )
        slot.replies, slot.repeated, slot.moves, slot.ends = [], [], moves, ends
        cluster.listeners.append(slot.dropped)
        made.append(slot)
        return slot

    yield make
    for each in made:
        each.close()


def answers(*texts: str) -> Callable[[str], Answer]:
    """Return what answers with an error for each text, and then as usual."""
    left = list(texts)

    def answer(command: str) -> Answer:
        return f"-{left.pop(0)}\r\n".encode() if left else bulk(command)

    return answer


def moved_to(node: ScriptedNode, word: str = "MOVED") -> str:
    """Return the error that says that the slot is at a node."""
    return f"{word} {SLOT} {node.place.host}:{node.place.port}"


def test_commands_keep_their_order_from_the_first(slots: Slots, cluster: ScriptedCluster) -> None:
    slot = slots()
    assert slot.state.value == "idle"
    for number in range(3):
        slot.send("ECHO", str(number))
    slot.await_replies("ECHO 0", "ECHO 1", "ECHO 2")
    assert slot.state is SlotState.READY
    assert cluster.nodes[0].got == ["ECHO 0", "ECHO 1", "ECHO 2"]
    assert (slot.moves, slot.repeated) == ([], [])


def test_what_a_node_has_moved_is_sent_to_the_next_one(
    slots: Slots, cluster: ScriptedCluster
) -> None:
    first, second = cluster.nodes
    slot = slots()
    first.answer = answers(moved_to(second), moved_to(second))
    for word in ("a", "b"):
        slot.send("ECHO", word)
    slot.await_replies("ECHO a", "ECHO b")
    assert second.got == ["ECHO a", "ECHO b"]
    assert slot.moves == [False]
    assert slot.repeated == [], "they were not carried out before"


def test_keys_that_are_at_the_other_node_already_are_asked_for_there(
    slots: Slots, cluster: ScriptedCluster
) -> None:
    first, second = cluster.nodes
    slot = slots()
    first.answer = answers(moved_to(second, "ASK"))
    slot.send("ECHO", "there")
    slot.await_replies("ECHO there")
    slot.send("ECHO", "here")
    slot.await_replies("ECHO there", "ECHO here")
    assert second.got == ["ASKING", "ECHO there"]
    assert first.got == ["ECHO there", "ECHO here"]


@pytest.mark.parametrize("text", ["TRYAGAIN keys are on their way", "CLUSTERDOWN x", "LOADING x"])
def test_what_passes_is_waited_for(slots: Slots, cluster: ScriptedCluster, text: str) -> None:
    slot = slots()
    cluster.nodes[0].answer = answers(text, text)
    slot.send("ECHO", "x")
    slot.await_replies("ECHO x")
    assert cluster.nodes[0].got == ["ECHO x"] * 3


def test_other_errors_are_the_caller_s(slots: Slots, cluster: ScriptedCluster) -> None:
    slot = slots()
    cluster.nodes[0].answer = answers("WRONGTYPE no list", "WRONGTYPE no list")
    slot.send("ECHO", "x")
    slot.await_replies("ErrorReply")
    with pytest.raises(Exception, match="WRONGTYPE"):
        slot.call(pack("ECHO", "x"), Deadline(CAME))


def test_a_cluster_that_is_down_is_asked_until_it_is_not(
    slots: Slots, cluster: ScriptedCluster
) -> None:
    node = cluster.nodes[0]
    slot = slots()
    node.answer = answers("CLUSTERDOWN x")
    node.state = "fail"
    slot.send("ECHO", "x")
    until(lambda: slot.state is SlotState.SEEKING, CAME)
    assert slot.replies == []
    node.state = "ok"
    slot.await_replies("ECHO x")


def test_a_slot_that_is_not_served_is_not_waited_for_longer_than_allowed(
    slots: Slots, cluster: ScriptedCluster
) -> None:
    slot = slots(reply_timeout=0.2)
    cluster.ranges = []
    slot.send("ECHO", "x")
    slot.await_replies("NodeLost")
    with pytest.raises(TimeoutError, match=f"no node serves slot {SLOT} .*CLUSTER INFO"):
        slot.call(pack("ECHO", "x"))


def test_after_a_loss_only_what_may_be_repeated_is_sent_again(
    slots: Slots, cluster: ScriptedCluster
) -> None:
    node = cluster.nodes[0]
    slot = slots()
    slot.send("ECHO", "answered")
    slot.await_replies("ECHO answered")
    node.answer = lambda command: None
    slot.send("HDEL", "key", "field")
    slot.send("LPUSH", "key", "message")
    until(lambda: len(node.got) == 3, CAME)
    node.answer = bulk
    node.peer.drop()
    slot.await_replies("ECHO answered", "HDEL key field", "NodeLost")
    slot.send("ECHO", "behind")
    slot.await_replies("ECHO answered", "HDEL key field", "NodeLost", "ECHO behind")
    assert node.got[3:] == ["HDEL key field", "ECHO behind"]
    assert slot.repeated == ["field"], "nothing else may have been carried out twice"
    assert slot.moves == [True]
    assert slot.ends == []


def test_nothing_is_left_unanswered_when_no_node_is_left(
    slots: Slots, cluster: ScriptedCluster
) -> None:
    slot = slots()
    slot.call(pack("ECHO", "x"))
    for each in cluster.nodes:
        each.peer.stop()
    slot.send("ECHO", "x")
    until(lambda: slot.ends, CAME, "the end of the link")
    assert "no node of the cluster" in str(slot.ends[0])
    slot.close()
    slot.send("ECHO", "late")
    assert slot.replies == ["LinkLost", "LinkLost"]
    assert slot.state is SlotState.CLOSED
    with pytest.raises(LinkLost):
        slot.wait_writable(Deadline(CAME))


def test_callers_have_left_when_they_are_killed(slots: Slots, cluster: ScriptedCluster) -> None:
    node = cluster.nodes[0]
    slot = slots()
    slot.call(pack("ECHO", "x"))
    node.answer = lambda command: None
    calling = gevent.spawn(slot.call, pack("ECHO", "killed"))
    until(lambda: len(node.got) == 2, CAME)
    calling.kill()
    node.answer = bulk
    node.peer.drop()
    assert slot.call_all([pack("ECHO", "a"), pack("ECHO", "b")]) == [b"ECHO a", b"ECHO b"]
    assert node.got[2:] == ["ECHO killed", "ECHO a", "ECHO b"]


def test_which_commands_may_be_repeated() -> None:
    scripts = Scripts()
    for script, is_repeated in ((CLAIM, False), (PUSH, False), (MOVE, True)):
        for _ in range(2):  # by its text, and by its digest
            assert may_repeat(scripts.call(script, (b"key",))) is is_repeated
    for word in ("LPUSH", "RPUSH", "PUBLISH", "SPUBLISH"):
        assert not may_repeat(pack(word, "key", "x"))
    for word in ("HDEL", "GET"):
        assert may_repeat(pack(word, "key", "x"))


def test_a_lost_node_is_an_error_of_one_waiter_each(slots: Slots) -> None:
    slot, shared = slots(), NodeLost("gone")
    one, other = slot.error(shared), slot.error(shared)
    assert one is not other
    assert (type(one), str(one)) == (NodeLost, "gone")
