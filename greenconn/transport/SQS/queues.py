"""The queues of one link (names, URLs and attributes at SQS), and its fan-out exchanges, topics of SNS.

A topic has a subscription for each bound queue.  It is shared by all programs of the account, so a
publisher reaches queues that it knows nothing of.  Kombu's topics have the same names, tags and form of
messages: both kinds of programs may share one.
"""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from greenconn.broker.queues import UNDECLARED, Declaration
from greenconn.exceptions import NotAllowed
from greenconn.green.retry import attempts
from greenconn.transport.SQS.service import (
    BUSY,
    AccessDeniedQueueException,
    DoesNotExistQueueException,
    InvalidQueueException,
    NewQueues,
    Service,
    ServiceBusy,
    UnableToSubscribeQueueToTopicException,
    UnableToUnsubscribeQueueFromTopicException,
    UndefinedExchangeException,
    UndefinedQueueException,
    as_error,
)

if TYPE_CHECKING:
    from greenconn.transport.SQS.store import SqsStore

logger = logging.getLogger("greenconn.transport.SQS")


#: Messages of one request (kombu's name).
SQS_MAX_MESSAGES: Final = 10


def in_batches(
    ask: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
    where: str,
    action: str,
    fields: Sequence[Mapping[str, Any]],
    *,
    retries: int,
) -> list[Exception | None]:
    """Send one request for up to ten messages; return for each why it failed.  May switch.

    What failed for no fault of ours is sent again, by itself.

    Arguments:
        ask: sends the request with these entries and returns the response.
        where, action: for messages.
        fields: of each entry, without its ``Id``; at least one.
        retries: repetitions at most; 0: their order counts, so none.

    Raises:
        Exception: what *ask* raises.
    """
    outcomes: list[Exception | None] = [None] * len(fields)
    left: list[int] = list(range(len(fields)))
    for _ in attempts(BUSY.replace(tries=retries + 1)):
        response = ask([{"Id": str(number), **fields[number]} for number in left])
        done = {entry.get("Id") for entry in response.get("Successful") or ()}
        failed = {entry.get("Id"): entry for entry in response.get("Failed") or ()}
        again = []
        for number in left:
            failure = failed.get(str(number))
            if failure is None and str(number) in done:
                outcomes[number] = None
                continue
            outcomes[number] = _failure(where, action, failure)
            if isinstance(outcomes[number], ServiceBusy):
                again.append(number)
        left = again
        if not left:
            break
    return outcomes


def _failure(where: str, action: str, failure: Mapping[str, Any] | None) -> Exception:
    if failure is None:
        return ServiceBusy(f"{where}: {action}: the response has no result for this message")
    code, message = str(failure.get("Code") or ""), str(failure.get("Message") or "")
    if not failure.get("SenderFault"):
        return ServiceBusy(f"{where}: {action}: {code}: {message[:200]}")
    return as_error(where, action, code, message)


#: The end of the names of FIFO queues and topics.
FIFO: Final = ".fifo"
#: What AWS does not take -> what stands for it: kombu's table.
_TABLE: Final = {ord(char): "_" for char in string.punctuation if char not in "-_."} | {46: "-"}


def aws_name(name: str) -> str:
    """Return the name at AWS of a queue or exchange (kombu's ``entity_name``).

    >>> aws_name("celery@host.example.pidbox"), aws_name("orders.eu.fifo")
    ('celery_host-example-pidbox', 'orders-eu.fifo')
    """
    if name.endswith(FIFO):
        return name.removesuffix(FIFO).translate(_TABLE) + FIFO
    return name.translate(_TABLE)


#: Seconds for which a redrive policy is remembered (kombu's): one may be added to a live queue.
REDRIVE_KEPT: Final = 300.0


class SqsQueue:
    """A queue that is there.

    Attributes:
        name: ours; ``aws`` is that at SQS.
        service: through which it is used.
        settings: of a predefined one.
        is_full: the last request for messages was given as many as it may be.
        is_uncounted: SQS does not tell this account how many messages it has.
    """

    __slots__ = (
        "_new",
        "_redrives",
        "_redrives_until",
        "aws",
        "is_fifo",
        "is_full",
        "is_uncounted",
        "name",
        "service",
        "settings",
        "url",
    )

    def __init__(
        self,
        name: str,
        aws: str,
        url: str,
        service: Service,
        settings: Mapping[str, Any],
        new: NewQueues,
    ) -> None:
        self.name = name
        self.aws = aws
        self.url = url
        self.service = service
        self.settings = settings
        self.is_fifo = aws.endswith(FIFO)
        self.is_full = self.is_uncounted = False
        self._new = new
        self._redrives = False
        self._redrives_until = 0.0

    def __repr__(self) -> str:
        return f"<SqsQueue {self.name!r}>"

    def call(self, action: str, **parameters: Any) -> dict[str, Any]:
        """Have something done with it.  May switch; raises as :meth:`Service.call`."""
        return self._new.call(
            self.name,
            lambda deadline: self.service.call(
                action, repr(self.name), deadline=deadline, QueueUrl=self.url, **parameters
            ),
            self.service.deadline(parameters.get("waiting", 0)),
        )

    def batch(
        self, action: str, fields: Sequence[Mapping[str, Any]], *, retries: int
    ) -> list[Exception | None]:
        """Have it done with up to ten messages.  May switch; see :func:`in_batches`."""
        return in_batches(
            lambda entries: self.call(action, Entries=entries),
            self.service.where,
            f"{action} {self.name!r}",
            fields,
            retries=retries,
        )

    def attributes(self, *names: str) -> dict[str, str]:
        """Return its attributes.  May switch."""
        response = self.call("GetQueueAttributes", AttributeNames=list(names))
        return dict(response.get("Attributes") or {})

    def redrives(self) -> bool:
        """Return whether SQS itself moves unhandled messages to a dead-letter queue.  May switch."""
        if monotonic() >= self._redrives_until:
            try:
                self._redrives = "RedrivePolicy" in self.attributes("RedrivePolicy")
            except (AccessDeniedQueueException, ServiceBusy) as exc:
                # What is deleted is gone, what is left is redelivered: the safe way is to leave it.
                logger.warning("rejected messages stay in the queue: %s", exc)
                self._redrives = True
            self._redrives_until = monotonic() + REDRIVE_KEPT
        return self._redrives

    def retry_delay(self, task: str | None, deliveries: int) -> int | None:
        """Return the seconds of its ``backoff_policy`` for a task that failed; None without one."""
        policy = self.settings.get("backoff_policy") or {}
        if task is None or task not in (self.settings.get("backoff_tasks") or ()):
            return None
        value = policy.get(deliveries, policy.get(str(deliveries)))
        return None if value is None else int(value)


class Queues:
    """Names -> queues.

    Arguments:
        store: that of the link.
        service: SQS, for all that are not predefined.
    """

    def __init__(self, store: SqsStore, service: Service) -> None:
        self._store = store
        self._service = service
        self._options = store.options
        self._known: dict[str, SqsQueue] = {}
        #: Declarations of queues, for all links of a transport: SQS does not keep them.
        self._declared = store.accounts.declared
        self._new = store.accounts.new

    def get(self, name: str) -> SqsQueue:
        """Return a queue.  May switch when it is asked for first.

        Raises:
            DoesNotExistQueueException: there is none.
            UndefinedQueueException: it is none of the predefined ones.
        """
        queue = self._known.get(name)
        return self._look_up(name) if queue is None else queue

    def find(self, name: str) -> SqsQueue | None:
        """Ask SQS for a queue; None: there is none.  May switch."""
        try:
            return self._look_up(name)
        except (DoesNotExistQueueException, UndefinedQueueException):
            self._known.pop(name, None)
            self._declared.pop(name, None)
            return None

    def declaration(self, name: str) -> Declaration:
        """Return the declaration of an existing queue, as far as it is known here."""
        return self._declared.get(name, UNDECLARED)

    def has(self, aws: str) -> bool:
        """Return whether SQS has a queue of that name.  May switch."""
        try:
            self._service.call("GetQueueUrl", repr(aws), QueueName=aws)
        except DoesNotExistQueueException:
            return False
        return True

    def make(self, name: str, declaration: Declaration) -> SqsQueue:
        """Return a queue, made if there is none.  May switch.

        How one that is there already was declared is known only if it was declared here.

        Raises:
            UndefinedQueueException: it is none of the predefined ones.
            InvalidQueueException: SQS does not take its name or attributes.
        """
        try:
            # First, since to make one with other attributes than it has is an error of SQS.
            queue = self._look_up(name)
        except DoesNotExistQueueException:
            queue = self._make(name, declaration)
        self._declared.setdefault(name, declaration)
        return queue

    def forget(self, queue: SqsQueue) -> None:
        """Forget a queue that was deleted.  Never switches."""
        if self._known.get(queue.name) is queue:
            del self._known[queue.name]
        self._declared.pop(queue.name, None)
        self._new.pop(queue.name, None)

    def _look_up(self, name: str) -> SqsQueue:
        aws = aws_name(self._options.queue_name_prefix + name)
        if self._options.predefined_queues:
            return self._predefined(name, aws)
        try:
            response = self._new.call(
                name,
                lambda deadline: self._service.call(
                    "GetQueueUrl", repr(name), deadline=deadline, QueueName=aws
                ),
                self._service.deadline(),
            )
        except AccessDeniedQueueException as exc:
            raise AccessDeniedQueueException(
                f"{exc}, or the transport option predefined_queues must name the URL of the queue"
            ) from exc
        return self._note(name, aws, response["QueueUrl"])

    def _make(self, name: str, declaration: Declaration) -> SqsQueue:
        options = self._options
        aws = aws_name(options.queue_name_prefix + name)
        attributes: dict[str, str] = {}
        if options.visibility_timeout is not None:
            attributes["VisibilityTimeout"] = str(int(options.visibility_timeout))
        if aws.endswith(FIFO):
            attributes["FifoQueue"] = "true"
        attributes.update(
            (key, value if isinstance(value, str) else json.dumps(value))
            for key, value in (options.sqs_creation_attributes or {}).items()
        )
        more: dict[str, Any] = {}
        if options.queue_tags:
            more["tags"] = dict(options.queue_tags)
        response = self._service.call(
            "CreateQueue", repr(name), QueueName=aws, Attributes=attributes, **more
        )
        self._new.add(name)
        return self._note(name, aws, response["QueueUrl"])

    def _predefined(self, name: str, aws: str) -> SqsQueue:
        predefined = self._options.predefined_queues or {}
        settings = predefined.get(name) or predefined.get(aws)
        if settings is None:
            raise UndefinedQueueException(
                f"queue {name!r} is not in predefined_queues: "
                f"{', '.join(sorted(predefined)) or 'there are none'}"
            )
        return self._note(
            name, aws, settings["url"], self._store.service("sqs", settings), settings
        )

    def _note(
        self,
        name: str,
        aws: str,
        url: str,
        service: Service | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> SqsQueue:
        known = self._known.get(name)
        if known is not None and known.url == url:
            return known
        queue = SqsQueue(name, aws, url, service or self._service, settings or {}, self._new)
        self._known[name] = queue
        return queue


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
        store: that of the link.
    """

    def __init__(self, store: SqsStore) -> None:
        self._store = store
        self._options = store.options
        self._queues = store.queues
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
        return self._store.service(
            "sns", (self._options.predefined_exchanges or {}).get(exchange) or {}
        )

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
                subscription
                for subscription in response.get("Subscriptions") or ()
                if subscription.get("Protocol") == "sqs"
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
