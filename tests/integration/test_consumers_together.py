"""Consumers that begin together, with a scripted server that does not confirm them."""

from __future__ import annotations

from collections import Counter

from amqp import spec

from greenconn import Connection, Queue, spawn_consumer
from greenconn.worker.group import CONSUMERS_PER_CHANNEL, TASKS_AT_ONCE
from tests.fix_amqp import AmqpPeer, BrokerEnd
from tests.fix_wires import until

CAME = 20.0


def answer(end: BrokerEnd) -> None:
    """Answer what comes before consumers."""
    end.answers = {
        spec.Queue.Declare: (spec.Queue.DeclareOk, "sll", "crowded", 0, 0),
        spec.Basic.Qos: (spec.Basic.QosOk,),
    }


def tag_of(arguments: bytes) -> str:
    """Return the consumer tag of a ``basic.consume``, which follows two bytes and the queue."""
    begin = 3 + arguments[2]
    return arguments[begin + 1 : begin + 1 + arguments[begin]].decode()


def test_they_do_not_wait_for_each_other(amqp_peer: AmqpPeer) -> None:
    """Their requests are under way at once, over all channels that they will share."""
    amqp_peer.prepare = answer
    queue = Queue("crowded", no_declare=True)
    with Connection(amqp_peer.url) as connection:
        consumers = [
            spawn_consumer(queue, lambda body, message: None, connection=connection)
            for _ in range(CONSUMERS_PER_CHANNEL + 1)
        ]
        until(lambda: amqp_peer.ends, CAME, "a connection")
        end = amqp_peer.end
        requests = [end.expect(spec.Basic.Consume) for _ in range(TASKS_AT_ONCE)]
        assert len(Counter(channel for channel, *_ in requests)) == 2
        for number in range(len(consumers)):
            channel, _, arguments, _ = requests[number]
            end.method(channel, spec.Basic.ConsumeOk, "s", tag_of(arguments))
            if len(requests) < len(consumers):
                requests.append(end.expect(spec.Basic.Consume))
        assert all(consumer.wait_ready(CAME) for consumer in consumers)
        assert len(Counter(channel for channel, *_ in requests)) == 2
        connection.collect()
