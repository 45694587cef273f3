"""Each error reply that a server may give, on each way that asks it something.

What passes is waited for in a cluster, and ends the connection to a single server, so that the next
one asks again.  What does not pass is an error that names the server and the remedy.  The nodes are
scripted: no server gives these replies when a test wants them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from redis.exceptions import ResponseError

from greenconn import Connection
from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.exceptions import AccessRefused, RecoverableConnectionError
from greenconn.transport.redis.envelope import Delivery
from greenconn.transport.redis.errors import ENDS_THE_LINK, LinkLost, as_error
from greenconn.transport.redis.scripts import ADVANCE, CLAIM
from greenconn.wire.resp import ErrorReply
from tests.fix_redis_nodes import (
    Answer,
    ClusterLink,
    ClusterLinks,
    ScriptedCluster,
    ScriptedNode,
    array,
    bulk,
    on_node,
    runs,
    with_sets,
)
from tests.fix_wires import until

CAME: Final = 30.0
[HERE] = on_node(0)

#: What passes, on a cluster and on a single server.
PASSING: Final = [
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
]
#: What passes on a cluster alone.
PASSING_ON_CLUSTER: Final = [
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN Hash slot not served",
    "CLUSTERDOWN The cluster is down",
    "CLUSTERDOWN The cluster is down and only accepts read commands",
]
#: What a script says, as it begins, that may be run again.
AMID_MOVE: Final = (
    "ERR Script attempted to access a non local key in a cluster node script: 0a1b, on "
    "@user_script:9."
)
#: What does not pass by itself, and what the error tells to do.
LASTING: Final = [
    ("OOM command not allowed when used memory > 'maxmemory'.", "raise maxmemory"),
    ("MISCONF Redis is configured to save RDB snapshots", "free disk space"),
    ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write"),
    ("NOPERM User mailer has no permissions to run the command", "docs/redis.rst"),
    ("NOAUTH Authentication required.", "login"),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", "global_keyprefix"),
]

Way = Callable[[ClusterLink], Any]


def refuse(cluster: ScriptedCluster, first: str, *texts: str) -> ScriptedNode:
    """Let the node that has all queues answer with an error for each text, then as it should.

    Arguments:
        first: only to commands that begin so.
    """
    left, usual, node = list(texts), with_sets({}), cluster.nodes[0]

    def answer(command: str) -> Answer:
        if left and command.startswith(first):
            return f"-{left.pop(0)}\r\n".encode()
        if runs(ADVANCE, command):
            return array(b":1\r\n", bulk("0"))
        if command.startswith("LINDEX"):
            return b"$-1\r\n"
        if command.startswith("SSCAN"):
            return array(bulk("0"), array())
        is_list = runs(CLAIM, command) or command.startswith("ZRANGEBYSCORE")
        return array() if is_list else usual(command)

    node.answer = answer
    return node


def publish(link: ClusterLink) -> None:
    """Append a message to a list."""
    channel: Any = link.connection.channel()
    channel.basic_publish_confirm(channel.prepare_message("x"), "", HERE, timeout=CAME)


def declare(link: ClusterLink) -> None:
    """Declare a queue: a script, and reads."""
    link.connection.channel().queue_declare(HERE)


def get(link: ClusterLink) -> None:
    """Take a message: the permissions are tried, then a claim."""
    link.connection.channel().basic_get(HERE)


def sweep(link: ClusterLink) -> None:
    """Advance the time of the leases, and look for what is due."""
    sweeper = link.placement.of(HERE).sweeper
    sweeper.advance()
    sweeper.sweep()


def ack(link: ClusterLink) -> None:
    """Acknowledge a message."""
    outcomes: list[Any] = []
    message = Claimed(HERE, None, link.handle(HERE, 1))
    link.placement.settler.settle([SettleRequest(message, Settlement.ACK)], outcomes.append)
    await_outcome(link, outcomes)


def requeue(link: ClusterLink) -> None:
    """Requeue a message: a script."""
    outcomes: list[Any] = []
    message = Delivery(None, link.handle(HERE, 1), 1, b'{"body": "x"}', HERE)
    link.placement.settler.settle([SettleRequest(message, Settlement.REQUEUE)], outcomes.append)
    await_outcome(link, outcomes)


def await_outcome(link: ClusterLink, outcomes: list[Any]) -> None:
    """Raise what came of a settlement, as those do who wait for it.  May switch."""
    until(lambda: outcomes, CAME)
    if isinstance(outcomes[0], Exception):
        raise link.placement.settler.error(outcomes[0], "settling messages")


#: What asks a server, and how the command begins that is refused.
WAYS: Final[list[tuple[Way, str]]] = [
    (publish, "LPUSH"),
    (declare, "GET"),
    (declare, "EVAL"),
    (get, "EVAL"),
    (get, "RPOP"),
    (sweep, "EVAL"),
    (sweep, "ZRANGEBYSCORE"),
    (ack, "HDEL"),
    (requeue, "EVAL"),
]
by_way: Final = pytest.mark.parametrize(
    ("way", "first"), WAYS, ids=[f"{way.__name__}-{first}" for way, first in WAYS]
)


@by_way
def test_what_passes_on_a_cluster_is_not_seen(
    cluster_links: ClusterLinks, cluster: ScriptedCluster, way: Way, first: str
) -> None:
    link, texts = cluster_links(reply_timeout=CAME), [*PASSING, *PASSING_ON_CLUSTER]
    node = refuse(cluster, first, *texts)
    way(link)
    assert sum(each.startswith(first) for each in node.got) > len(texts), "it was asked again"
    assert link.connection.connected


@by_way
def test_a_script_that_meets_a_slot_on_its_way_is_run_again(
    cluster_links: ClusterLinks, cluster: ScriptedCluster, way: Way, first: str
) -> None:
    if first != "EVAL" or way is get:  # which tries a claim, that must not be carried out twice
        return
    link = cluster_links(reply_timeout=CAME)
    refuse(cluster, first, AMID_MOVE, AMID_MOVE)
    way(link)


@by_way
def test_what_lasts_names_the_server_and_the_remedy(
    cluster_links: ClusterLinks, cluster: ScriptedCluster, way: Way, first: str
) -> None:
    link = cluster_links(reply_timeout=CAME)
    for text, remedy in LASTING:
        refuse(cluster, first, *[text] * 20)
        with pytest.raises((ResponseError, AccessRefused)) as caught:
            way(link)
        assert text in str(caught.value)
        assert remedy in str(caught.value)
        assert str(caught.value).startswith("redis+cluster://")


@pytest.mark.parametrize("text", PASSING, ids=[each.partition(" ")[0] for each in PASSING])
def test_what_passes_ends_the_connection_to_a_single_server(text: str) -> None:
    """The next one asks again; so what was published may have been, and is said to be recoverable."""
    error = as_error(ErrorReply(text), "redis://host", "publishing")
    assert isinstance(error, LinkLost)
    assert text.partition(" ")[0] in ENDS_THE_LINK


def test_what_goes_on_in_the_background_outlives_an_outage(
    cluster_links: ClusterLinks, cluster: ScriptedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages expire, and delayed ones are delivered, when the slot is served again."""
    link = cluster_links(reply_timeout=0.2)
    node = refuse(cluster, "")
    partition = link.placement.of(HERE)
    partition.expiry.watch(HERE, 1.0)

    def looks() -> int:
        return sum(each.startswith("LINDEX") for each in node.got)

    until(looks, CAME)
    cluster.ranges = []
    node.peer.drop()
    partition.delays.expect(0.0)
    until(lambda: "do not expire" in caplog.text, CAME)
    until(lambda: "delayed messages are not delivered" in caplog.text, CAME)
    before = looks()
    cluster.halve()
    until(lambda: looks() > before, CAME)
    partition.delays.stop()


@pytest.mark.parametrize(
    "text",
    [
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0",
    ],
    ids=["while it waits", "before it waits"],
)
def test_a_master_that_becomes_a_replica_while_its_replicas_are_waited_for(
    cluster_links: ClusterLinks, cluster: ScriptedCluster, text: str
) -> None:
    """It may have the message, and so may the next master: as when its socket is lost."""
    link = cluster_links(reply_timeout=CAME, replicas=1)
    refuse(cluster, "WAIT", text)
    with pytest.raises(RecoverableConnectionError, match="no master any more") as caught:
        publish(link)
    assert isinstance(caught.value, Connection("redis+cluster://").recoverable_connection_errors)
    publish(link)
