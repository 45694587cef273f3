"""What a link owned alone is free as soon as the link is lost, whatever its lease says."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.exceptions import AccessRefused, ResourceLocked
from tests.fix_wires import until
from tests.integration.contract import SOON, Side, Store


def at_once(side: Side, link: Any, method: str, *args: Any, **options: Any) -> Any:
    """Return a channel of *link* on which a method has succeeded.

    A RabbitMQ first has to see the end of the other connection.  The others have no second chance.
    """
    with gevent.Timeout(SOON):
        while True:
            channel = side.channel(link)
            try:
                getattr(channel, method)(*args, **options)
            except (AccessRefused, ResourceLocked):
                if side.kind != "amqp":
                    raise
                gevent.sleep(0.01)
            else:
                return channel


def test_exclusive_queue_of_a_lost_link_is_free_at_once(side: Side) -> None:
    lost, link = side.link(), side.link()
    queue = side.queue(side.channel(lost), exclusive=True)
    with pytest.raises(ResourceLocked):
        side.channel(link).queue_declare(queue, exclusive=True)
    lost.collect()
    channel = at_once(side, link, "queue_declare", queue, exclusive=True)
    side.send(channel, "x", "", queue)
    assert side.get(channel, queue).body == "x"
    channel.queue_delete(queue)


def test_exclusive_consumer_of_a_lost_link_is_in_the_way_of_nobody(side: Side) -> None:
    lost, link = side.link(), side.link()
    queue = side.queue(side.channel(link))
    side.channel(lost).basic_consume(queue, exclusive=True, sink=Store())
    with pytest.raises(AccessRefused):
        side.channel(link).basic_consume(queue, exclusive=True, sink=Store())
    lost.collect()
    store = Store()
    channel = at_once(side, link, "basic_consume", queue, exclusive=True, sink=store)
    if side.kind == "sqs":
        return  # the server may still give a message to the question of the lost link
    side.send(channel, "x", "", queue)
    until(lambda: [each.body for each in store] == ["x"])
