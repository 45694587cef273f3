"""Fan-out in SQS: topics of SNS, which other processes share or delete."""

from __future__ import annotations

import json
import logging

import pytest

from greenconn import Exchange
from greenconn.exceptions import NotAllowed
from tests.fix_sqs import Connect
from tests.integration.sqs_clients import attributes_of, declared, store_of


def test_topic_that_was_deleted_elsewhere_is_made_again(
    sqs_connect: Connect, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(unique, "fanout")
    connection, other = sqs_connect(), sqs_connect()
    queues = [declared(connection, f"{unique}-{n}", exchange=exchange) for n in range(3)]
    producer = connection.Producer()
    producer.publish("before", exchange=exchange, declare=[exchange])
    store_of(other).queues.get(queues[2].name).call("DeleteQueue")
    store_of(other).topics.drop(unique)
    producer.publish("after", exchange=exchange)
    for queue in queues[:2]:
        got = [queue.get(no_ack=True) for _ in range(2)]
        assert sorted(each.payload for each in got if each is not None) == ["after", "before"]
    assert caplog.text.count("was deleted elsewhere") == 1
    for queue in queues[:2]:
        queue.delete()
    connection.default_channel.exchange_delete(unique)


def test_policy_of_a_queue_names_all_its_topics(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect()
    exchanges = [Exchange(f"{unique}-{n}", "fanout") for n in range(2)]
    queue = declared(connection, unique, exchange=exchanges[0])
    exchanges[1](connection.default_channel).declare()
    queue.bind_to(exchanges[1])
    policy = json.loads(attributes_of(connection, unique)["Policy"])
    sources = {each["Condition"]["ArnLike"]["aws:SourceArn"] for each in policy["Statement"]}
    assert {arn.rpartition(":")[2] for arn in sources} == {each.name for each in exchanges}
    queue.delete()
    for exchange in exchanges:
        connection.default_channel.exchange_delete(exchange.name)


def test_no_fanout(sqs_connect: Connect, unique: str) -> None:
    connection = sqs_connect(supports_fanout=False)
    with pytest.raises(NotAllowed, match="supports_fanout=True"):
        Exchange(unique, "fanout")(connection.default_channel).declare()


def test_fanout_where_the_account_does_not_allow_topics(
    sqs_connect: Connect, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(unique, "fanout")
    refusing = {"predefined_exchanges": {"another": {"arn": "arn:aws:sns:us-east-1:1:another"}}}
    connection = sqs_connect(queue_name_prefix=unique, **refusing)
    with caplog.at_level(logging.WARNING):
        queue = declared(connection, "q", exchange=exchange)
    assert "reaches only queues that this process binds" in caplog.text
    connection.Producer().publish("here", exchange=exchange)
    message = queue.get(no_ack=True)
    assert message is not None
    assert message.payload == "here"
    queue.delete()
    strict = sqs_connect(supports_fanout=True, region="us-west-2", **refusing)
    with pytest.raises(NotAllowed, match="not in predefined_exchanges"):
        exchange(strict.default_channel).declare()
