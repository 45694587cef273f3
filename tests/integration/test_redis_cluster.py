"""Redis Cluster: slots that move while they are used, and nodes that are killed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from random import Random
from typing import Any

import gevent
import pytest
import redis
from redis.cluster import RedisCluster as RedisPyCluster
from redis.crc import key_slot
from redis.exceptions import ResponseError

import greenconn
from greenconn import Connection, Exchange, Queue
from greenconn.exceptions import PublishTimeout
from greenconn.transport.redis.cluster import PARTITIONS, ClusterPlacement, tag_of
from greenconn.transport.redis.errors import LinkLost
from greenconn.transport.redis.fanout import glob
from greenconn.transport.redis.link import Partition
from greenconn.transport.redis.nodes import SlotPipeline
from greenconn.transport.redis.scripts import CLAIM, entry_suffix, mark
from tests.brokers.packages import NoBroker
from tests.brokers.redis_cluster import SLOTS, ClusterNode, RedisCluster
from tests.brokers.tls import AUTHORITY, REDIS_OPTIONS
from tests.fix_brokers import Brokers
from tests.fix_wires import until
from tests.integration.redis_load import OPTIONS, Load

pytestmark = pytest.mark.halved

SOON = 60.0


def slot_of(queue: str) -> int:
    """Return the slot of a queue."""
    return key_slot(f"{{{tag_of(queue)}}}{queue}".encode())


def placement_of(connection: Connection) -> ClusterPlacement:
    """Return the placement of a connection to a cluster."""
    placement = connection.connection.placement
    assert isinstance(placement, ClusterPlacement)
    return placement


def test_partitions_are_spread_over_all_slots() -> None:
    slots = {key_slot(f"{{{tag_of(f'queue-{number}')}}}".encode()) for number in range(5000)}
    assert sorted(slot * PARTITIONS // SLOTS for slot in slots) == list(range(PARTITIONS))


def test_a_hash_tag_in_a_name_decides() -> None:
    assert tag_of("{orders}.new") == tag_of("{orders}.failed") == tag_of("orders")


def test_slots_move_under_load(own_redis_cluster: RedisCluster, unique: str, long: bool) -> None:
    names = [f"{unique}-{number}" for number in range(20)]
    moves = 40 if long else 6
    with Load(own_redis_cluster.urls, names) as load:
        for name in (names * 2)[:moves]:
            load.go_on(50)
            slot = slot_of(name)
            source = own_redis_cluster.owner_of(slot)
            target = next(each for each in own_redis_cluster.masters if each is not source)
            own_redis_cluster.move(slot, target)
        load.go_on(200)
        load.finish()
    assert load.lost == []
    assert max(load.got.values()) == 1


def test_delayed_messages_outlive_a_slot_that_moves(
    own_redis_cluster: RedisCluster, unique: str
) -> None:
    """The list and the declaration are still at the old node when a message is due at the new one."""
    cluster, slot = own_redis_cluster, slot_of(unique)
    with Connection(cluster.urls) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, arguments={"x-expires": 600_000})
        placement = placement_of(connection)
        delayed = placement.of(unique).commands.keys.delayed.decode()
        producer = connection.Producer(channel)
        producer.publish("first", routing_key=unique)
        to = next(each for each in cluster.masters if each is not cluster.owner_of(slot))
        producer.publish("delayed", routing_key=unique, delay=1.0)
        source = cluster.begin_move(slot, to)
        source.ask("MIGRATE", "127.0.0.1", to.port, delayed, 0, 5000)
        until(lambda: "asking" in to.ask("INFO", "commandstats"), SOON)
        cluster.end_move(slot, source, to)
        until(lambda: channel.queue_declare(unique, passive=True)[1] == 2, SOON)
        bodies = [channel.basic_get(unique, no_ack=True).decode() for _ in range(2)]
        assert bodies == ["first", "delayed"]
        channel.queue_delete(unique)


def test_a_delayed_message_for_an_empty_queue_is_on_time_when_its_slot_has_moved(
    own_redis_cluster: RedisCluster, unique: str
) -> None:
    """An empty list is at neither node; a minute is what a key of a wrong type waits."""
    cluster, slot = own_redis_cluster, slot_of(unique)
    with Connection(cluster.urls) as connection:
        channel = connection.channel()
        channel.queue_declare(unique)
        connection.Producer(channel).publish("x", routing_key=unique, delay=0.5)
        to = next(each for each in cluster.masters if each is not cluster.owner_of(slot))
        source = cluster.begin_move(slot, to)
        source.ask("CONFIG", "RESETSTAT")
        until(lambda: "TRYAGAIN:count" in source.ask("INFO", "errorstats"), SOON)
        cluster.end_move(slot, source, to)
        until(lambda: channel.queue_declare(unique, passive=True)[1] == 1, SOON / 2)
        channel.queue_delete(unique)


def test_a_master_that_is_replaced_fails_publishes_that_wait_for_replicas(
    own_redis_cluster: RedisCluster, unique: str
) -> None:
    """It says so to WAIT, which is no refusal of the message: the next master takes it."""
    cluster = own_redis_cluster
    with Connection(cluster.urls, transport_options={"replicas": 2}) as connection:
        channel = connection.channel()
        channel.queue_declare(unique)
        master = cluster.owner_of(slot_of(unique))
        message = channel.prepare_message("x")
        publishers = [
            gevent.spawn(channel.basic_publish_confirm, message, "", unique) for _ in range(20)
        ]
        until(lambda: channel.queue_declare(unique, passive=True)[1] == 20, SOON)
        next(each for each in cluster.nodes if each.follows(master)).ask(
            "CLUSTER", "FAILOVER", "TAKEOVER"
        )
        for each in publishers:
            with pytest.raises(connection.recoverable_connection_errors, match=r"redis\+cluster:"):
                each.get(timeout=SOON)
        assert connection.connected


def test_a_master_is_killed_under_load(
    own_redis_cluster: RedisCluster, unique: str, long: bool
) -> None:
    """What a replica has is not lost."""
    names = [f"{unique}-{number}" for number in range(20)]
    with Load(own_redis_cluster.urls, names, replicas=1) as load:
        for _ in range(3 if long else 1):
            load.go_on(500)
            own_redis_cluster.masters[0].kill()
            # Else it would be the master again, and empty: it has nothing on disk.
            until(lambda: len(own_redis_cluster.masters) == 3, SOON)
            load.go_on(2000)
            own_redis_cluster.mend()
        load.finish()
    assert load.lost == [], "a node that is lost does not end the connection"


def test_sockets_are_cut_under_load(redis_cluster: RedisCluster, unique: str, long: bool) -> None:
    """A node ends its connections, amid whatever is on its way."""
    names = [f"{unique}-{number}" for number in range(20)]
    with Load(redis_cluster.url, names) as load:
        for number in range(100 if long else 10):
            load.go_on(50)
            redis_cluster.nodes[number % 3].ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        load.go_on(200)
        load.finish()
        assert load.late == 0, "acks that were sent again are not late"
    assert load.lost == []


@pytest.mark.full
def test_a_frozen_master_is_replaced(own_redis_cluster: RedisCluster, unique: str) -> None:
    """It keeps its sockets, so only the others can say that another one has its slots.

    Without ``replicas`` it may have confirmed, in its last moment, what no replica has.
    """
    names = [f"{unique}-{number}" for number in range(20)]
    with Load(own_redis_cluster.urls, names, replicas=1) as load:
        load.go_on(200)
        frozen = own_redis_cluster.masters[0]
        slots = {slot_of(name) for name in names}
        mine = [each for each in slots if own_redis_cluster.owner_of(each) is frozen]
        frozen.pause()
        others = [each for each in own_redis_cluster.nodes if each is not frozen]
        until(lambda: sum(each.is_master for each in others) == 3, SOON)
        began = len(load.confirmed)
        load.go_on(2000)
        assert mine, "no queue was on it"
        assert len(load.confirmed) > began
        frozen.resume()
        own_redis_cluster.wait_ready()
        load.finish()
    assert load.lost == []
    assert load.longest < SOON / 2


def test_a_large_body_for_a_node_that_stops_reading_holds_up_no_other(
    redis_cluster: RedisCluster, unique: str
) -> None:
    """It is more than all buffers on its way take, and its publisher leaves in between."""
    body, names = "x" * 16 * 2**20, [f"{unique}-{number}" for number in range(50)]
    owners = {name: redis_cluster.owner_of(slot_of(name)) for name in names}
    frozen = owners[names[0]]
    elsewhere = next(name for name in names if owners[name] is not frozen)
    for node in redis_cluster.nodes:
        node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    connection = Connection(redis_cluster.urls, transport_options=OPTIONS)
    connection.connect()
    for name in (names[0], elsewhere):
        greenconn.publish(Queue(name), "before", connection=connection)
    frozen.pause()
    try:
        waiting = gevent.spawn(
            greenconn.publish, Queue(names[0]), body, connection=connection, timeout=SOON
        )
        with pytest.raises(PublishTimeout):
            greenconn.publish(Queue(names[0]), body, connection=connection, timeout=0.5)
        for number in range(10):
            greenconn.publish(Queue(elsewhere), number, connection=connection, timeout=SOON)
        assert not waiting.ready()
    finally:
        frozen.resume()
        for node in redis_cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    waiting.get(timeout=SOON)
    greenconn.publish(Queue(names[0]), "behind", connection=connection, timeout=SOON)
    channel, bodies = connection.channel(), []
    while (message := channel.basic_get(names[0], no_ack=True)) is not None:
        bodies.append(message.decode())
    assert bodies in (["before", body, "behind"], ["before", body, body, "behind"])
    connection.close()


@pytest.mark.full
def test_a_cluster_that_is_down_is_waited_for(own_redis_cluster: RedisCluster, unique: str) -> None:
    """Without a master and its replica, which have it on no disk, all slots are refused."""
    with Connection(own_redis_cluster.urls, transport_options=OPTIONS) as connection:
        greenconn.publish(Queue(unique), "before", connection=connection)
        owner = own_redis_cluster.owner_of(slot_of(unique))
        dead = next(each for each in own_redis_cluster.masters if each is not owner)
        pair = [each for each in own_redis_cluster.nodes if each.follows(dead)] + [dead]
        for each in pair:
            each.kill()
        until(lambda: not own_redis_cluster.is_ok(owner), SOON)
        with pytest.raises(PublishTimeout) as sent:
            greenconn.publish(Queue(unique), "x", connection=connection, timeout=2.0)
        with pytest.raises(PublishTimeout, match="CLUSTER INFO says") as waited:
            greenconn.publish(Queue(unique), "y", connection=connection, timeout=2.0)
        assert "CLUSTERDOWN" in str(waited.value)
        assert (sent.value.maybe_delivered, waited.value.maybe_delivered) == (True, False)
        waiting = gevent.spawn(
            greenconn.publish, Queue(unique), "after", connection=connection, timeout=SOON
        )
        link = connection.connection
        own_redis_cluster.mend()
        waiting.get(timeout=SOON)
        assert connection.connection is link
        channel, bodies = connection.channel(), []
        while (message := channel.basic_get(unique, no_ack=True)) is not None:
            bodies.append(message.decode())
        assert bodies in (["before", "after"], ["before", "x", "after"])


class Audience:
    """Consumers of one fan-out exchange, each with a connection of its own, and what they got.

    Arguments:
        url: of the cluster.
        name: of the exchange.
        keys: the binding key of each.
        shardings: the value of ``fanout_sharding`` of each.
    """

    def __init__(self, url: str, name: str, keys: Sequence[str], shardings: Sequence[str]) -> None:
        self.exchange = Exchange(name, "fanout")
        self._keys = keys
        self.connections = [
            Connection(
                url, transport_options={"fanout_sharding": each, "health_check_interval": 1.0}
            )
            for each in shardings
        ]
        self.got: list[list[str]] = [[] for _ in shardings]

    def __enter__(self) -> Audience:
        self._consumers = [
            greenconn.spawn_consumer(
                Queue(f"{self.exchange.name}-{number}", self.exchange, key, auto_delete=True),
                partial(self._take, number),
                connection=connection,
            )
            for number, (connection, key) in enumerate(
                zip(self.connections, self._keys, strict=True)
            )
        ]
        assert all(each.wait_ready(SOON) for each in self._consumers)
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self._consumers:
            each.stop(SOON)
        for connection in self.connections:
            connection.close()

    def _take(self, number: int, body: str, message: object) -> None:
        self.got[number].append(body)

    def say(self, body: str, connection: Connection, routing_key: str = "") -> None:
        """Publish a message.  May switch."""
        greenconn.publish(
            self.exchange, body, routing_key=routing_key, connection=connection, timeout=SOON
        )

    def await_again(self) -> None:
        """Publish until all get it: after a loss, messages may be missing.  May switch."""

        def is_there() -> bool:
            self.say("again", self.connections[0])
            return all("again" in got for got in self.got)

        until(is_there, SOON)


@pytest.mark.parametrize(
    "shardings",
    [("off", "off"), ("off", "listen"), ("listen", "listen"), ("listen", "on"), ("on", "on")],
    ids="-".join,
)
def test_fan_out_reaches_all(
    redis_cluster_url: str, unique: str, shardings: tuple[str, ...]
) -> None:
    """Once each, whoever publishes, also while programs change their option one by one."""
    with Audience(redis_cluster_url, unique, ["", ""], shardings) as audience:
        for number in range(10):
            audience.say(f"{number}", audience.connections[number % 2])
        until(lambda: sum(map(len, audience.got)) == 20, SOON)
        assert [Counter(each) for each in audience.got] == [Counter(map(str, range(10)))] * 2


@pytest.mark.parametrize("sharding", ["off", "on"])
def test_fan_out_by_patterns_of_keys(redis_cluster_url: str, unique: str, sharding: str) -> None:
    keys = ["", "a.#", "a.b", "#"]
    with Audience(redis_cluster_url, unique, keys, [sharding] * 4) as audience:
        for key in ("", "a.b", "a.c", "b", "end"):
            audience.say(key, audience.connections[0], key)
        audience.say("last", audience.connections[0], "a.b")
        until(lambda: all("last" in got for got in audience.got), SOON)
    all_keys = ["", "a.b", "a.c", "b", "end", "last"]
    assert audience.got == [all_keys, ["a.b", "a.c", "last"], ["a.b", "last"], all_keys[1:]]


def test_patterns_mean_what_they_mean_to_the_server(
    redis_url: str, unique: str, request: pytest.FixtureRequest, long: bool
) -> None:
    """Shard channels have no patterns, so the client compares channels with them."""
    chance = Random(request.config.getoption("randomly_seed", 0))
    names = ["".join(each) for size in (1, 2, 3) for each in product("ab]-[\\^*?", repeat=size)]
    with Connection(redis_url) as connection:
        client = connection.default_channel.client
        client.mset({unique + name: "" for name in names})
        for _ in range(5000 if long else 200):
            pattern = "".join(chance.choices("ab*?[]^-\\", k=chance.randint(1, 7)))
            found = {each.decode() for each in client.keys(unique + pattern)}
            matching = glob((unique + pattern).encode()).fullmatch
            assert {unique + each for each in names if matching((unique + each).encode())} == found
        client.delete(*(unique + name for name in names))


@pytest.mark.parametrize("sharding", ["off", "on"])
def test_fan_out_of_dead_letters(redis_cluster_url: str, unique: str, sharding: str) -> None:
    with Audience(redis_cluster_url, unique, [""], [sharding]) as audience:
        channel = audience.connections[0].channel()
        names = [f"{unique}-source-{number}" for number in range(3)]
        for name in names:
            channel.queue_declare(name, arguments={"x-dead-letter-exchange": unique})
            channel.basic_publish(channel.prepare_message(name), "", name)
            channel.basic_get(name).reject()
        until(lambda: len(audience.got[0]) == 3, SOON)
        assert sorted(audience.got[0]) == names
        for name in names:
            channel.queue_delete(name)


def is_owner(cluster: RedisCluster, slot: int, node: ClusterNode) -> bool:
    """Return whether the cluster knows that a node serves a slot.  May switch."""
    return cluster.owner_of(slot) is node


def has_gaps(caplog: pytest.LogCaptureFixture, count: int) -> bool:
    """Return whether the log has told of so many gaps."""
    return caplog.text.count("may be missing") >= count


def passed_on(cluster: RedisCluster) -> int:
    """Return the number of messages that nodes have got from each other to publish.  May switch."""
    found = re.compile(r"messages_publish_received:(\d+)")
    texts = [each.ask("CLUSTER", "INFO") for each in cluster.nodes]
    return sum(int(each) for text in texts for each in found.findall(text))


def settle_bus(cluster: RedisCluster, name: str) -> None:
    """Return when what nodes have passed on to each other by now has arrived, also of other tests.

    A link from node to node keeps the order, so each node sends a last message.
    """
    with ExitStack() as clients:
        made = [clients.enter_context(redis.Redis(port=node.port)) for node in cluster.nodes]
        listeners = [clients.enter_context(each.pubsub()) for each in made]
        for listener in listeners:
            listener.subscribe(name)
            assert listener.get_message(timeout=SOON)["type"] == "subscribe"
        for client in made:
            client.publish(name, "last")
        for listener in listeners:
            for _ in made:
                assert listener.get_message(timeout=SOON)["type"] == "message"


@pytest.mark.parametrize("sharding", ["off", "on"])
def test_sharded_messages_are_not_passed_on_to_all_nodes(
    redis_cluster: RedisCluster, unique: str, sharding: str
) -> None:
    settle_bus(redis_cluster, unique)
    before = passed_on(redis_cluster)
    with Audience(redis_cluster.url, unique, [""], [sharding]) as audience:
        for number in range(20):
            audience.say(f"{number}", audience.connections[0])
        until(lambda: len(audience.got[0]) == 20, SOON)
        assert audience.got[0] == [str(number) for number in range(20)]
        if sharding == "on":
            assert passed_on(redis_cluster) == before
        else:
            until(lambda: passed_on(redis_cluster) >= before + 20, SOON)


def test_sharded_fan_out_with_the_documented_channels(
    redis_cluster: RedisCluster, unique: str
) -> None:
    """A pattern must be permitted letter by letter, a shard channel by a pattern."""
    channels = [f"&app:/0.{unique}", f"&app:/0.{unique}/*", "&app:{*}/0.*"]
    prefix = {"global_keyprefix": "app:", "fanout_sharding": "on"}
    url = redis_cluster.url.replace("//", "//app:password@")
    try:
        for node in redis_cluster.nodes:
            node.ask(
                "ACL", "SETUSER", "app", "reset", "on", ">password", "~app:*", "+@all", *channels
            )
        with Connection(url, transport_options=prefix) as connection:
            got: list[str] = []
            exchange = Exchange(unique, "fanout")
            queue = Queue(unique, exchange, auto_delete=True)
            consumer = greenconn.spawn_consumer(
                queue, lambda body, message: got.append(body), connection=connection
            )
            assert consumer.wait_ready(SOON)
            greenconn.publish(exchange, "x", connection=connection)
            until(lambda: got == ["x"], SOON)
            assert consumer.stop(SOON)
    finally:
        for node in redis_cluster.nodes:
            node.ask("ACL", "DELUSER", "app")


def test_a_shard_channel_is_followed_to_another_node(
    own_redis_cluster: RedisCluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = own_redis_cluster
    slot = slot_of(unique)
    with Audience(cluster.urls, unique, ["", ""], ["on", "on"]) as audience:
        for number in range(3):
            source = cluster.owner_of(slot)
            target = next(each for each in cluster.masters if each is not source)
            cluster.move(slot, target)
            until(partial(is_owner, cluster, slot, target), SOON)
            for got in audience.got:
                got.clear()
            audience.await_again()
            until(partial(has_gaps, caplog, 2 * (number + 1)), SOON)


@pytest.mark.parametrize("is_frozen", [False, True], ids=["killed", "frozen"])
def test_a_shard_channel_is_followed_to_a_new_master(
    own_redis_cluster: RedisCluster, unique: str, is_frozen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is frozen keeps its sockets, so only the others can say that it was replaced."""
    cluster = own_redis_cluster
    with Audience(cluster.urls, unique, ["", ""], ["on", "on"]) as audience:
        owner = cluster.owner_of(slot_of(unique))
        others = [each for each in cluster.nodes if each is not owner]
        if is_frozen:
            owner.pause()
        else:
            owner.kill()
        until(lambda: sum(each.is_master for each in others) == 3, SOON)
        audience.await_again()
        cluster.mend()
    assert has_gaps(caplog, 2)


def test_a_dead_letter_goes_to_another_partition(redis_cluster_url: str, unique: str) -> None:
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{unique}-dead"}
    assert tag_of(unique) != tag_of(f"{unique}-dead") or pytest.skip("they are together")
    with Connection(redis_cluster_url, transport_options=OPTIONS) as connection:
        channel = connection.channel()
        channel.queue_declare(f"{unique}-dead")
        channel.queue_declare(unique, arguments={**arguments, "x-message-ttl": 500})
        for body in ("rejected", "expired"):
            channel.basic_publish(channel.prepare_message(body), "", unique)
        channel.basic_get(unique).reject()
        until(lambda: channel.queue_declare(f"{unique}-dead", passive=True)[1] == 2, SOON)
        letters = [channel.basic_get(f"{unique}-dead") for _ in range(2)]
        reasons = [each.headers["x-death"][0]["reason"] for each in letters]
        assert reasons == ["rejected", "expired"]
        assert channel.basic_get(unique) is None
        for name in (unique, f"{unique}-dead"):
            channel.queue_delete(name)


def claim_unseen(partition: Partition, queue: str) -> None:
    """Claim a message, as if the reply had been lost with the socket.  May switch."""
    commands, keys = partition.commands, partition.commands.keys
    number = partition.claims.take_numbers(1)
    lists = (keys.unacked, keys.unacked_index, *keys.lists(queue))
    arguments = (commands.prefix, number, 1, 1, entry_suffix(queue), mark())
    commands.run(CLAIM, lists, *arguments, what="claiming")


def test_what_a_lost_socket_had_claimed_is_requeued(redis_cluster_url: str, unique: str) -> None:
    """The owner lives on, so no lease ends: the placement looks for it."""
    with (
        Connection(redis_cluster_url, transport_options={"lease": 600.0}) as connection,
        Connection(redis_cluster_url) as other,
    ):
        channel = connection.channel()
        channel.queue_declare(unique)
        placement = placement_of(connection)
        partition = placement.of(unique)
        for number in range(3):
            channel.basic_publish(channel.prepare_message(str(number)), "", unique)
        held = channel.basic_get(unique)
        claim_unseen(partition, unique)
        assert other.channel().queue_declare(unique, passive=True)[1] == 1
        slot = partition.commands.pipeline
        assert isinstance(slot, SlotPipeline)
        assert slot.node is not None
        slot.node.end(LinkLost("as if it had been cut"))
        until(lambda: other.channel().queue_declare(unique, passive=True)[1] == 2, SOON)
        held.ack()
        bodies = [channel.basic_get(unique).body for _ in range(2)]
        assert bodies == ["1", "2"]
        channel.queue_delete(unique)


def test_what_a_lost_node_had_given_is_requeued_when_the_next_one_takes_writes(
    own_redis_cluster: RedisCluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a new master has no replica yet (min-replicas-to-write)."""
    cluster = own_redis_cluster
    with Connection(cluster.urls, transport_options={"lease": 600.0}) as connection:
        channel = connection.channel()
        channel.queue_declare(unique)
        partition = placement_of(connection).of(unique)
        channel.basic_publish(channel.prepare_message("x"), "", unique)
        claim_unseen(partition, unique)
        node = cluster.owner_of(slot_of(unique))
        node.ask("CONFIG", "SET", "min-replicas-to-write", 2)
        slot = partition.commands.pipeline
        assert isinstance(slot, SlotPipeline)
        assert slot.node is not None
        slot.node.end(LinkLost("as if it had been replaced"))
        until(lambda: re.search("are requeued later: .*NOREPLICAS", caplog.text), SOON)
        node.ask("CONFIG", "SET", "min-replicas-to-write", 0)
        until(lambda: channel.queue_declare(unique, passive=True)[1] == 1, SOON)
        channel.queue_delete(unique)


def test_a_database_is_refused(redis_cluster_url: str) -> None:
    with pytest.raises(ValueError, match="only database 0"):
        Connection(f"{redis_cluster_url}/3").connect()


def test_the_client_of_one_server_is_refused(redis_cluster_url: str) -> None:
    with (
        Connection(redis_cluster_url) as connection,
        pytest.raises(
            NotImplementedError, match=r"make a redis\.cluster\.RedisCluster of your own"
        ),
    ):
        _ = connection.default_channel.client


def test_a_publish_window(redis_cluster: RedisCluster, unique: str) -> None:
    """Publishes to all nodes share it; what one of them refuses is reported."""
    names = [f"{unique}-{number}" for number in range(20)]
    options = {**OPTIONS, "publish_window": 16}
    with Connection(redis_cluster.url, transport_options=options) as connection:
        channel: Any = connection.channel()
        for number in range(500):
            channel.basic_publish(channel.prepare_message("x"), "", names[number % 20])
        channel.flush()
        with Connection(redis_cluster.url) as other:
            counts = [other.default_channel.queue_declare(name, passive=True)[1] for name in names]
        assert counts == [25] * 20
        wrong = f"{unique}-wrong"
        redis_cluster.owner_of(slot_of(wrong)).ask("SET", f"{{{tag_of(wrong)}}}{wrong}", "no list")
        closed: Any = connection.channel()
        reported = 0

        def call(method: Callable[..., object], *arguments: object) -> None:
            # Where the reply was quick, the next publish reports it, and flush() the rest.
            nonlocal reported
            while True:
                try:
                    method(*arguments)
                except ResponseError as exc:
                    (count,) = re.findall(r"(\d+) earlier publishes .* WRONGTYPE", str(exc))
                    reported += int(count)
                else:
                    return

        for each in (channel, closed):
            for name in (names[0], wrong, names[1], wrong):
                call(each.basic_publish, each.prepare_message("x"), "", name)
        closed.close()
        call(channel.flush)
        assert reported == 4


def test_a_lost_node_is_reported_by_the_window(redis_cluster: RedisCluster, unique: str) -> None:
    options = {**OPTIONS, "publish_window": 16}
    with Connection(redis_cluster.url, transport_options=options) as connection:
        channel: Any = connection.channel()
        channel.basic_publish(channel.prepare_message("x"), "", unique)
        channel.flush()
        for _ in range(8):
            channel.basic_publish(channel.prepare_message("x"), "", unique)
        placement = placement_of(connection)
        pipeline = placement.of(unique).commands.pipeline
        assert isinstance(pipeline, SlotPipeline)
        assert pipeline.node is not None
        pipeline.node.end(LinkLost("as if it had been cut"))
        # One or another may have been confirmed on the way.
        with pytest.raises(PublishTimeout, match=r"[1-8] publishes .* not confirmed") as caught:
            channel.flush()
        assert caught.value.maybe_delivered
        channel.basic_publish(channel.prepare_message("x"), "", unique)
        channel.flush()


def test_tls(brokers: Brokers, unique: str) -> None:
    """The nodes tell each client the ports of its kind, and are verified as the first one is."""
    cluster = RedisCluster(brokers.keeper, REDIS_OPTIONS, replicas=0)
    try:
        try:
            cluster.start()
        except NoBroker as error:
            pytest.skip(f"this Redis has no TLS: {error}")
        url = f"rediss+cluster://127.0.0.1:{cluster.nodes[0].tls_port}"
        with Connection(f"{url}?ssl_ca_certs={AUTHORITY}") as connection:
            channel = connection.channel()
            names = [f"{unique}-{number}" for number in range(12)]
            for name in names:
                greenconn.publish(Queue(name), name, connection=connection)
            assert [channel.basic_get(name, no_ack=True).decode() for name in names] == names
            ports = {each.port for each in placement_of(connection).nodes.places()}
            assert ports == {each.tls_port for each in cluster.nodes}
        with Connection(url) as connection, pytest.raises(OSError, match="certificate"):
            connection.connect()
    finally:
        cluster.close()


def test_a_client_of_ones_own_instead_of_the_channels(
    redis_cluster: RedisCluster, unique: str
) -> None:
    """It blocks no greenlet in the threadpool, patched or not."""

    def visit() -> tuple[Any, Any]:
        with RedisPyCluster(host="127.0.0.1", port=redis_cluster.nodes[0].port) as cluster:
            cluster.set(unique, 41)
            return cluster.incr(unique), cluster.get(unique)

    assert gevent.get_hub().threadpool.apply(visit) == (42, b"42")
