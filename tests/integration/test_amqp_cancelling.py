"""Cancelling a consumer that RabbitMQ has not confirmed yet, which would end the connection."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from greenconn.connection import Connection

CAME = 20.0


@pytest.mark.parametrize("nowait", [False, True])
def test_one_that_is_about_to_start(amqp_url: str, unique: str, nowait: bool) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, exclusive=True, auto_delete=False)
        for number in range(30):
            tag = f"tag-{number}"
            both: list[gevent.Greenlet[..., Any]] = [
                gevent.spawn(channel.basic_consume, unique, tag),
                gevent.spawn(channel.basic_cancel, tag, nowait=nowait),
            ]
            gevent.joinall(both, timeout=CAME, raise_error=True)
        assert channel.queue_declare(unique, passive=True).consumer_count == 0
        assert connection.session.generation == 1


def test_one_whose_caller_was_killed(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, exclusive=True, auto_delete=False)
        for number in range(30):
            tag = f"tag-{number}"
            starting = gevent.spawn(channel.basic_consume, unique, tag)
            gevent.sleep(0)
            starting.kill(block=False)
            channel.basic_cancel(tag)
            channel.basic_qos(0, 1, False)  # its answer overtakes that of the consumer's queue
        channel.queue_purge(unique)
        gevent.sleep(0.05)
        assert channel.queue_declare(unique, passive=True).consumer_count == 0
        assert connection.session.generation == 1


def test_one_whose_channel_is_closed_meanwhile(amqp_url: str, unique: str) -> None:
    with Connection(amqp_url) as connection:
        channel = connection.channel()
        channel.queue_declare(unique, exclusive=True, auto_delete=False)
        starting: gevent.Greenlet[..., Any] = gevent.spawn(channel.basic_consume, unique, "tag")
        cancelling: gevent.Greenlet[..., Any] = gevent.spawn(channel.basic_cancel, "tag")
        gevent.sleep(0)
        channel.close()
        gevent.joinall([starting, cancelling], timeout=CAME)
        assert cancelling.successful()
        assert connection.session.generation == 1
        with pytest.raises(Exception, match="closed"):
            starting.get()
