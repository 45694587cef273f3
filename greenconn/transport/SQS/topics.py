"""Fan-out exchanges as topics of SNS, with a subscription for each bound queue.

A topic is shared by all programs of the account, so a publisher reaches queues that it knows nothing
of.  Kombu's topics have the same names, tags and form of messages: both kinds of programs may share
one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from greenconn.exceptions import NotAllowed
from greenconn.transport.SQS.exceptions import (
    DoesNotExistQueueException,
    InvalidQueueException,
    UnableToSubscribeQueueToTopicException,
    UnableToUnsubscribeQueueFromTopicException,
    UndefinedExchangeException,
)
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.queues import FIFO, Queues, SqsQueue, aws_name, in_batches
from greenconn.transport.SQS.service import Service

logger = logging.getLogger("greenconn.transport.SQS")

#: Begins the names under which topics are among the queues that a message goes to.
_MARK: Final = "sns:///"

#: SNS refuses to find a topic that has other tags than those it is asked for with, so they are kombu's.
_TAGS: Final = (
    {"Key": "ManagedBy", "Value": "Celery/Kombu"},
    {
        "Key": "Description",
        "Value": "This SNS topic is used by Kombu to enable Fanout support for AWS SQS.",
    },
)


def topic_entry(exchange: str) -> str:
    """Return what stands for the topic of *exchange* among the queues that a message goes to."""
    return _MARK + exchange


def exchange_of(name: str) -> str | None:
    """Return the exchange whose topic *name* stands for; None: *name* is a queue's."""
    return name.removeprefix(_MARK) if name.startswith(_MARK) else None


class Topics:
    """The topics of one link.

    Arguments:
        service_of: SNS, for what a predefined exchange says.  May switch.
    """

    def __init__(
        self,
        options: SQSOptions,
        queues: Queues,
        service_of: Callable[[Mapping[str, Any]], Service],
    ) -> None:
        self._options = options
        self._queues = queues
        self._service_of = service_of
        #: Exchange -> ARN of its topic.
        self._arns: dict[str, str] = {}
        #: Queue -> exchange -> ARN of its subscription.
        self._subscriptions: dict[str, dict[str, str]] = {}

    def check(self) -> None:
        """Check that fan-out exchanges are allowed.

        Raises:
            NotAllowed: the option says no.
        """
        if self._options.supports_fanout is False:
            raise NotAllowed(
                "fan-out exchanges need the transport option supports_fanout=True (SNS topics), "
                "got False"
            )

    def arn(self, exchange: str) -> str:
        """Return the ARN of an exchange's topic, which is made if there is none.  May switch.

        Raises:
            UndefinedExchangeException: it is none of the predefined ones.
            Exception: SNS refuses; see :meth:`~.service.Service.call`.
        """
        known = self._arns.get(exchange)
        if known is None:
            known = self._arns[exchange] = self._make(exchange)
        return known

    def _make(self, exchange: str) -> str:
        predefined = self._options.predefined_exchanges
        if predefined:
            if exchange not in predefined:
                raise UndefinedExchangeException(
                    f"exchange {exchange!r} is not in predefined_exchanges: "
                    f"{', '.join(sorted(predefined))}"
                )
            return str(predefined[exchange]["arn"])
        name = aws_name(self._options.queue_name_prefix + exchange)
        attributes = {"FifoTopic": "true"} if name.endswith(FIFO) else {}
        response = self._service(exchange).call(
            "CreateTopic", repr(exchange), Name=name, Attributes=attributes, Tags=list(_TAGS)
        )
        return str(response["TopicArn"])

    def _service(self, exchange: str) -> Service:
        return self._service_of((self._options.predefined_exchanges or {}).get(exchange) or {})

    def drop(self, exchange: str) -> None:
        """Delete the topic of an exchange, unless it is a predefined one.  May switch."""
        if self._options.predefined_exchanges:
            return
        arn = self.arn(exchange)
        self._service(exchange).call("DeleteTopic", repr(exchange), TopicArn=arn)
        self._arns.pop(exchange, None)
        for subscriptions in self._subscriptions.values():
            subscriptions.pop(exchange, None)

    # -- subscribers

    def subscribe(self, exchange: str, name: str) -> None:
        """Let a queue have what is published to an exchange; again: changes nothing.  May switch.

        Raises:
            UnableToSubscribeQueueToTopicException: SNS does not take it.
        """
        known = self._subscriptions.setdefault(name, {})
        if exchange in known:
            return
        queue, topic = self._queues.get(name), self.arn(exchange)
        kept = queue.attributes("QueueArn", "Policy")
        self._allow(queue, kept, topic)
        try:
            response = self._service(exchange).call(
                "Subscribe",
                f"{name!r} to {exchange!r}",
                TopicArn=topic,
                Protocol="sqs",
                Endpoint=kept["QueueArn"],
                Attributes={"RawMessageDelivery": "true"},
                ReturnSubscriptionArn=True,
            )
        except InvalidQueueException as exc:
            raise UnableToSubscribeQueueToTopicException(str(exc)) from exc
        known[exchange] = response["SubscriptionArn"]

    def _allow(self, queue: SqsQueue, kept: Mapping[str, str], topic: str) -> None:
        """See that the policy of a queue lets a topic send to it."""
        try:
            policy = json.loads(kept.get("Policy") or "{}")
            statements = policy.get("Statement") or []
        except (ValueError, AttributeError):
            policy, statements = {}, []
        if isinstance(statements, dict):
            statements = [statements]
        statement = {
            "Sid": f"Greenconn{sha256(topic.encode()).hexdigest()[:24]}",
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "SQS:SendMessage",
            "Resource": kept["QueueArn"],
            "Condition": {"ArnLike": {"aws:SourceArn": topic}},
        }
        if statement in statements:
            return
        # One for each topic: kombu keeps one for all, and forgets the topic before.
        policy = {"Version": "2012-10-17", **policy, "Statement": [*statements, statement]}
        queue.call("SetQueueAttributes", Attributes={"Policy": json.dumps(policy)})

    def unsubscribe(self, exchange: str, name: str) -> None:
        """Let a queue have no more of an exchange; one that has none is no error.  May switch.

        Raises:
            UnableToUnsubscribeQueueFromTopicException: SNS does not let it go.
        """
        arn = self._subscriptions.get(name, {}).pop(exchange, None) or self._find(exchange, name)
        if arn is None:
            return
        try:
            self._service(exchange).call(
                "Unsubscribe", f"{name!r} from {exchange!r}", SubscriptionArn=arn
            )
        except DoesNotExistQueueException:
            pass
        except InvalidQueueException as exc:
            raise UnableToUnsubscribeQueueFromTopicException(str(exc)) from exc

    def _find(self, exchange: str, name: str) -> str | None:
        """Return the subscription of a queue that another link has made."""
        aws = aws_name(self._options.queue_name_prefix + name)
        for subscription in self._list(exchange):
            if subscription["Endpoint"].rpartition(":")[2] == aws:
                return str(subscription["SubscriptionArn"])
        return None

    def _list(self, exchange: str) -> list[Mapping[str, str]]:
        """Return the subscriptions of queues to an exchange."""
        found: list[Mapping[str, str]] = []
        more: dict[str, Any] = {}
        service, topic = self._service(exchange), self.arn(exchange)
        while True:
            response = service.call(
                "ListSubscriptionsByTopic", repr(exchange), TopicArn=topic, **more
            )
            found += [
                each
                for each in response.get("Subscriptions") or ()
                if each.get("Protocol") == "sqs"
            ]
            if not response.get("NextToken"):
                return found
            more = {"NextToken": response["NextToken"]}

    def count(self, exchange: str) -> int:
        """Return the number of queues that subscribed to an exchange.  May switch."""
        return len(self._list(exchange))

    def subscribed(self) -> list[tuple[str, str]]:
        """``(queue, exchange)`` of what was subscribed here.  Never switches."""
        return [(queue, each) for queue, known in self._subscriptions.items() for each in known]

    def leave(self, name: str) -> None:
        """End the subscriptions of a queue that were made here, before it is deleted.  May switch."""
        for exchange in list(self._subscriptions.get(name, ())):
            self.unsubscribe(exchange, name)
        self._subscriptions.pop(name, None)

    def clean(self, exchange: str) -> int:
        """End subscriptions of queues that are gone, and return how many there were.  May switch."""
        count = 0
        for subscription in self._list(exchange):
            if not self._queues.has(subscription["Endpoint"].rpartition(":")[2]):
                self._service(exchange).call(
                    "Unsubscribe", repr(exchange), SubscriptionArn=subscription["SubscriptionArn"]
                )
                count += 1
        return count

    # -- messages

    def publish(self, exchange: str, batch: Sequence[Mapping[str, Any]]) -> list[Exception | None]:
        """Publish up to ten messages; return for each why it failed.  May switch.

        A topic that was deleted elsewhere is made again, with the subscriptions that were made here.

        Arguments:
            batch: fields of entries as SQS takes them.
        """
        try:
            return self._publish(exchange, batch)
        except DoesNotExistQueueException:
            if self._options.predefined_exchanges:
                raise
        self._make_again(exchange)
        return self._publish(exchange, batch)

    def _make_again(self, exchange: str) -> None:
        """Make a topic that is gone, and subscribe the queues that were subscribed here."""
        logger.warning("topic %r was deleted elsewhere: creating it again", exchange)
        self._arns.pop(exchange, None)
        for name, known in list(self._subscriptions.items()):
            if known.pop(exchange, None) is not None:
                try:
                    self.subscribe(exchange, name)
                except DoesNotExistQueueException:
                    pass  # the queue is gone, too

    def _publish(self, exchange: str, batch: Sequence[Mapping[str, Any]]) -> list[Exception | None]:
        service, topic = self._service(exchange), self.arn(exchange)
        fields = []
        for each in batch:
            each = {name: value for name, value in each.items() if name != "DelaySeconds"}
            each["Message"] = each.pop("MessageBody")
            fields.append(each)
        return in_batches(
            lambda entries: service.call(
                "PublishBatch",
                repr(exchange),
                TopicArn=topic,
                PublishBatchRequestEntries=entries,
            ),
            service.where,
            f"PublishBatch {exchange!r}",
            fields,
            retries=0 if exchange.endswith(FIFO) else self._options.retries,
        )
