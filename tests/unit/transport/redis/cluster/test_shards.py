"""Subscriptions to shard channels, over scripted nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import gevent
import pytest
from redis.exceptions import NoPermissionError, ResponseError

from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.fanout import Fanout, Shards, glob
from greenconn.transport.redis.options import Keys, RedisOptions
from greenconn.transport.redis.pipeline import Commands
from tests.fix_redis_nodes import Answer, ScriptedCluster, ScriptedNode, bulk
from tests.fix_wires import until

CAME = 30.0
WHERE = "redis+cluster://test"
NEWS = b"{0}/0.news"
SUBSCRIBE, UNSUBSCRIBE = "SSUBSCRIBE {0}/0.news", "SUNSUBSCRIBE {0}/0.news"
#: The bindings of a queue that takes all keys.
ALL = [("news", b"/0.news"), ("news", b"/0.news/*")]


class Got(Fanout):
    """What came: messages by their queues, and gaps."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.gaps: list[set[str]] = []

    def deliver(self, queue: str, raw: bytes) -> None:
        """Take a message."""
        self.messages.append((queue, raw))

    def report_gap(self, queues: Iterable[str], seconds: float) -> None:
        """Take a gap."""
        assert seconds >= 0.0
        self.gaps.append(set(queues))


class Subscriber:
    """The subscriptions of one link, and what they bring."""

    def __init__(self, cluster: ScriptedCluster, reply_timeout: float = CAME) -> None:
        self.got = Got()
        self.nodes = cluster.client(cluster.nodes)
        options = RedisOptions(fanout_sharding="on", reply_timeout=reply_timeout)
        keys = Keys(options, 0, "0")
        self.commands = Commands(WHERE, keys, options, lambda: None)
        self.shards = Shards(self.commands, self.nodes, keys.shard_channel, self.got)


Subscribers = Callable[..., Subscriber]


@pytest.fixture
def subscribers(cluster: ScriptedCluster) -> Iterator[Subscribers]:
    """Makes subscribers: ``subscribers(reply_timeout=...)``."""
    made: list[Subscriber] = []
    for node in cluster.nodes:
        node.answer = taken

    def make(reply_timeout: float = CAME) -> Subscriber:
        made.append(Subscriber(cluster, reply_timeout))
        return made[-1]

    yield make
    for each in made:
        each.shards.stop()


def push(*parts: bytes) -> bytes:
    """Return a push."""
    return b">%d\r\n%b" % (len(parts), b"".join(parts))


def named(kind: str, name: str) -> bytes:
    """Return the push that a subscription has begun or ended."""
    return push(bulk(kind), bulk(name), b":1\r\n")


def taken(command: str) -> Answer:
    """Return what a node answers that takes all subscriptions."""
    word, _, name = command.partition(" ")
    return named(word.lower(), name)


def refusing(*texts: str) -> Callable[[str], Answer]:
    """Return what answers with an error for each text, and then takes subscriptions."""
    left = list(texts)
    return lambda command: f"-{left.pop(0)}\r\n".encode() if left else taken(command)


def publish(node: ScriptedNode, topic: str, raw: str) -> None:
    """Let a node pass on a message."""
    payload = f"{len(topic)}:{topic}{raw}"
    node.say(push(bulk("smessage"), bulk(NEWS.decode()), bulk(payload)))


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("/0.x", ["/0.x"], ["/0.x/a", "/0_x", ""]),
        ("/0.x/*", ["/0.x/", "/0.x/a.b", "/0.x/a\nb"], ["/0.x"]),
        ("a.*.c", ["a.b.c", "a..c", "a.b.b.c"], ["a.c"]),
        ("a**b", ["ab", "axxb"], ["a"]),
        ("a?c", ["abc", "a.c"], ["ac", "abbc"]),
        ("[a-c]1", ["a1", "b1", "c1"], ["d1", "-1", "a"]),
        ("[c-a]1", ["b1"], ["d1"]),
        ("[^a-c]1", ["d1", "^1"], ["a1"]),
        ("[a\\]]", ["a", "]"], ["\\", "b"]),
        ("\\*", ["*"], ["x", "\\"]),
        ("x\\", ["x\\"], ["x"]),
        ("[]", [], ["", "]", "x"]),
        ("a[b", ["ab"], ["a[b"]),
        ("[a-]", ["a", "]", "^"], ["-"]),
        ("[\\a-c]", ["a", "-", "c"], ["b"]),
        ("a.(b|c)+$", ["a.(b|c)+$"], ["a.b"]),
    ],
)
def test_patterns_are_redis_s(pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = glob(pattern.encode())
    assert [each for each in matching if not compiled.fullmatch(each.encode())] == []
    assert [each for each in others if compiled.fullmatch(each.encode())] == []


def test_messages_reach_the_queues_whose_patterns_match(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    subscriber = subscribers()
    subscriber.shards.listen("all", ALL)
    subscriber.shards.listen("some", [("news", b"/0.news/a.*"), ("news", b"/0.news/a.b")])
    node = cluster.nodes[0]
    assert node.got == [SUBSCRIBE], "one subscription for all queues"
    for topic in ("/0.news", "/0.news/a.b", "/0.news/b"):
        publish(node, topic, topic)
    until(lambda: len(subscriber.got.messages) == 4, CAME)
    assert subscriber.got.messages == [
        ("all", b"/0.news"),
        ("all", b"/0.news/a.b"),
        ("some", b"/0.news/a.b"),
        ("all", b"/0.news/b"),
    ]
    assert subscriber.got.gaps == []


def test_what_another_program_has_sent_is_dropped(
    subscribers: Subscribers, cluster: ScriptedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    subscriber = subscribers()
    subscriber.shards.listen("q", ALL)
    node = cluster.nodes[0]
    node.say(push(bulk("smessage"), bulk(NEWS.decode()), bulk("hello")))
    publish(node, "/0.news", "{}")
    until(lambda: subscriber.got.messages == [("q", b"{}")], CAME)
    until(lambda: "another program" in caplog.text, CAME)


def test_the_last_queue_that_leaves_ends_the_subscription(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    subscriber, node = subscribers(), cluster.nodes[0]
    for queue in ("one", "other"):
        subscriber.shards.listen(queue, ALL)
    subscriber.shards.leave("one")
    subscriber.shards.unbound("other", "news", b"/0.news")
    assert node.got == [SUBSCRIBE]
    subscriber.shards.unbound("other", "news", b"/0.news/*")
    until(lambda: node.got == [SUBSCRIBE, UNSUBSCRIBE], CAME)
    subscriber.shards.unbound("other", "news", b"/0.news/*")
    subscriber.shards.leave("other")


def test_leaving_and_listening_at_once_ends_with_a_subscription(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    """The end of the former subscription is not taken for that of the next one."""
    subscriber, node = subscribers(), cluster.nodes[0]
    for _ in range(3):
        subscriber.shards.listen("q", ALL)
        subscriber.shards.leave("q")
    subscriber.shards.listen("q", ALL)
    publish(node, "/0.news", "{}")
    until(lambda: subscriber.got.messages == [("q", b"{}")], CAME)
    assert node.got[-1] == SUBSCRIBE
    assert subscriber.got.gaps == []


def test_a_node_that_has_not_the_slot_names_the_one_that_has(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    first, second = cluster.nodes
    subscriber = subscribers()
    first.answer = refusing(f"MOVED 42 {second.place.host}:{second.place.port}")
    subscriber.shards.listen("q", ALL)
    assert (first.got, second.got) == ([SUBSCRIBE], [SUBSCRIBE])
    assert subscriber.got.gaps == []


@pytest.mark.parametrize("text", ["CLUSTERDOWN x", "LOADING x", "TRYAGAIN x"])
def test_what_passes_is_waited_for(
    subscribers: Subscribers, cluster: ScriptedCluster, text: str
) -> None:
    subscriber, node = subscribers(), cluster.nodes[0]
    node.answer = refusing(text, text)
    subscriber.shards.listen("q", ALL)
    assert node.got == [SUBSCRIBE] * 3


def test_a_slot_that_is_not_served_in_time_is_named(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    subscriber = subscribers(reply_timeout=2.0)
    cluster.nodes[0].answer = lambda command: b"-CLUSTERDOWN The cluster is down\r\n"
    with pytest.raises(TimeoutError, match=r"'news' within 2 s: CLUSTERDOWN"):
        subscriber.shards.listen("q", ALL)
    subscriber.shards.leave("q")


@pytest.mark.parametrize(
    ("text", "error", "remedy"),
    [
        ("NOPERM User app has no permissions", NoPermissionError, "docs/redis.rst"),
        ("ERR unknown command `SSUBSCRIBE`, with args", ResponseError, "fanout_sharding"),
    ],
)
def test_a_refusal_is_the_caller_s(
    subscribers: Subscribers,
    cluster: ScriptedCluster,
    text: str,
    error: type[Exception],
    remedy: str,
) -> None:
    subscriber = subscribers()
    cluster.nodes[0].answer = lambda command: f"-{text}\r\n".encode()
    with pytest.raises(error, match=remedy):
        subscriber.shards.listen("q", ALL)
    subscriber.shards.leave("q")


def test_a_slot_that_leaves_its_node_is_followed(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    first, second = cluster.nodes
    subscriber = subscribers()
    subscriber.shards.listen("q", ALL)
    cluster.serve_all(second)
    first.answer = refusing(f"MOVED 42 {second.place.host}:{second.place.port}")
    first.say(named("sunsubscribe", NEWS.decode()))
    until(lambda: subscriber.got.gaps == [{"q"}], CAME)
    assert second.got == [SUBSCRIBE]
    publish(second, "/0.news", "{}")
    until(lambda: subscriber.got.messages == [("q", b"{}")], CAME)


def test_a_slot_that_leaves_while_it_is_asked_for_is_followed(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    """The end of a subscription may come before the reply that says that it was taken."""
    subscriber, node = subscribers(), cluster.nodes[0]
    ends = [named("sunsubscribe", NEWS.decode())]
    node.answer = lambda command: (taken(command) or b"") + (ends.pop() if ends else b"")
    subscriber.shards.listen("q", ALL)
    assert node.got == [SUBSCRIBE] * 2
    assert subscriber.got.gaps == [], "no consumer was promised anything before"


@pytest.mark.parametrize("is_back", [True, False], ids=["back", "replaced"])
def test_a_lost_socket_is_opened_again(
    subscribers: Subscribers, cluster: ScriptedCluster, is_back: bool
) -> None:
    first, second = cluster.nodes
    subscriber = subscribers()
    subscriber.shards.listen("q", ALL)
    if is_back:
        first.peer.drop()
        after = first
    else:
        cluster.serve_all(second)
        first.peer.stop()
        after = second
    until(lambda: subscriber.got.gaps == [{"q"}], CAME)
    publish(after, "/0.news", "{}")
    until(lambda: subscriber.got.messages == [("q", b"{}")], CAME)


def test_a_silent_node_that_was_replaced_is_left(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    first, second = cluster.nodes
    subscriber = subscribers()
    subscriber.shards.listen("q", ALL)
    assert [each.lost for each in subscriber.nodes.pipelines()] == [None]
    cluster.serve_all(second)
    subscriber.nodes.refresh()
    until(lambda: subscriber.got.gaps == [{"q"}], CAME)
    assert (first.got, second.got) == ([SUBSCRIBE], [SUBSCRIBE])


def test_callers_that_are_killed_leave_the_others_waiting(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    subscriber, node = subscribers(), cluster.nodes[0]
    is_down = True
    node.answer = lambda command: b"-CLUSTERDOWN x\r\n" if is_down else taken(command)
    waiting = [gevent.spawn(subscriber.shards.listen, f"q{each}", ALL) for each in range(2)]
    until(lambda: node.got, CAME)
    waiting[0].kill()
    is_down = False
    waiting[1].get(timeout=CAME)
    assert waiting[1].successful()


def test_the_end_of_the_link_ends_what_waits(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    subscriber = subscribers()
    cluster.nodes[0].answer = lambda command: b"-CLUSTERDOWN x\r\n"

    def listen() -> bool:
        with pytest.raises(LinkLost):
            subscriber.shards.listen("q", ALL)
        return True

    waiting = gevent.spawn(listen)
    until(lambda: cluster.nodes[0].got, CAME)
    subscriber.commands.lost = LinkLost("as if it had ended")
    subscriber.shards.stop()
    assert waiting.get(timeout=CAME)
    with pytest.raises(LinkLost):
        subscriber.shards.listen("q", ALL)


def test_without_pushes_messages_come_as_arrays(
    subscribers: Subscribers, cluster: ScriptedCluster
) -> None:
    subscriber, node = subscribers(), cluster.nodes[0]
    node.knows_hello = False
    node.answer = lambda command: (taken(command) or b"").replace(b">", b"*")
    subscriber.shards.listen("q", ALL)
    payload = bulk("7:/0.news{}")
    node.say(push(bulk("smessage"), bulk(NEWS.decode()), payload).replace(b">", b"*", 1))
    until(lambda: subscriber.got.messages == [("q", b"{}")], CAME)
