"""Transactions of an AMQP channel: what a rollback takes back, and what it leaves."""

from __future__ import annotations

import gevent
import pytest

from greenconn.exceptions import MessageStateError, PreconditionFailed
from greenconn.message import Message
from greenconn.transport.amqp.channel import Channel
from tests.fix_amqp import Links


@pytest.fixture
def messages(amqp_channel: Channel, unique: str) -> list[Message]:
    """Four messages of one queue, got on ``amqp_channel``, which has transactions by then."""
    channel = amqp_channel
    channel.queue_declare(unique, auto_delete=False)
    for number in range(1, 5):
        channel.basic_publish(channel.prepare_message(str(number)), routing_key=unique)
    got = []
    for _ in range(4):
        message = channel.basic_get(unique)
        assert message is not None
        got.append(message)
    channel.tx_select()
    return got


def left_in(links: Links, channel: Channel, queue: str) -> list[str]:
    """The bodies that are in *queue* once *channel*, which has them unanswered, is gone."""
    channel.connection.close()
    other = links().channel()
    bodies = []
    while (message := other.basic_get(queue, no_ack=True)) is not None:
        bodies.append(message.body)
    other.queue_delete(queue)
    return sorted(bodies)


def test_what_was_rolled_back_no_later_ack_covers(
    amqp_links: Links, amqp_channel: Channel, messages: list[Message], unique: str
) -> None:
    for message in messages[:2]:
        message.ack()
    amqp_channel.tx_rollback()
    for message in messages[2:]:
        message.ack()
    amqp_channel.tx_commit()
    assert left_in(amqp_links, amqp_channel, unique) == ["1", "2"]


def test_nothing_is_merged_over_an_ack_that_may_be_rolled_back(
    amqp_links: Links, amqp_channel: Channel, messages: list[Message], unique: str
) -> None:
    messages[0].reject(requeue=True)
    messages[1].ack()
    gevent.sleep(0)  # the end of a turn, at which acks leave
    messages[3].ack()
    amqp_channel.tx_rollback()
    messages[2].ack()
    messages[3].ack()
    amqp_channel.tx_commit()
    assert left_in(amqp_links, amqp_channel, unique) == ["1", "2"]


def test_an_ack_that_was_rolled_back_is_sent_again(
    amqp_links: Links, amqp_channel: Channel, messages: list[Message], unique: str
) -> None:
    first, second, third, _ = messages
    first.ack()
    second.reject(requeue=True)
    third.ack()
    assert [each.acknowledged for each in messages] == [True, True, True, False]
    amqp_channel.tx_rollback()
    assert not any(each.acknowledged for each in messages)
    first.ack()
    second.ack()
    amqp_channel.basic_ack(third.delivery_tag)
    with pytest.raises(MessageStateError):
        first.ack()
    amqp_channel.tx_commit()
    assert first.acknowledged
    with pytest.raises(PreconditionFailed):
        amqp_channel.basic_ack(third.delivery_tag)
    assert left_in(amqp_links, amqp_channel, unique) == ["4"]


def test_all_up_to_one_is_rolled_back_and_given_again(
    amqp_links: Links, amqp_channel: Channel, messages: list[Message], unique: str
) -> None:
    messages[2].ack(multiple=True)
    amqp_channel.tx_rollback()
    messages[1].ack(multiple=True)
    amqp_channel.tx_commit()
    assert left_in(amqp_links, amqp_channel, unique) == ["3", "4"]


def test_acks_before_the_first_transaction_stay(
    amqp_links: Links, amqp_channel: Channel, unique: str
) -> None:
    channel = amqp_channel
    channel.queue_declare(unique, auto_delete=False)
    for number in range(3):
        channel.basic_publish(channel.prepare_message(str(number)), routing_key=unique)
    got = [channel.basic_get(unique) for _ in range(3)]
    got[0].ack()
    channel.tx_select()
    got[1].ack()
    channel.tx_rollback()
    assert left_in(amqp_links, channel, unique) == ["1", "2"]


def test_a_rollback_whose_caller_is_killed_takes_back_all_the_same(
    amqp_links: Links, amqp_channel: Channel, messages: list[Message], unique: str
) -> None:
    messages[0].ack()
    rolling = gevent.spawn(amqp_channel.tx_rollback)
    gevent.idle()
    rolling.kill()
    messages[1].ack()
    amqp_channel.tx_commit()
    assert not messages[0].acknowledged
    assert left_in(amqp_links, amqp_channel, unique) == ["1", "3", "4"]
