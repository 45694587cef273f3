"""Simple queues on servers of several kinds."""

from __future__ import annotations

from greenconn import Connection

SOON = 30.0


def test_a_simple_queue_for_each_message(connection: Connection, unique: str) -> None:
    with connection.SimpleQueue(unique) as simple:
        for number in range(12):
            simple.put(number)
    for number in range(9):
        with connection.SimpleQueue(unique) as simple:
            message = simple.get(timeout=SOON)
            message.ack()
            assert (message.payload, message.delivery_info["redelivered"]) == (number, False)
    with connection.SimpleQueue(unique) as simple:
        rest = [simple.get(timeout=SOON) for _ in range(3)]
        assert [each.payload for each in rest] == [9, 10, 11]
        for each in rest:
            each.ack()
        connection.default_channel.queue_delete(unique)
