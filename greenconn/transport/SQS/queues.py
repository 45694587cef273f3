"""The queues of one link: their names, URLs and attributes at SQS."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from gevent import sleep

from greenconn.green.deadline import Deadline
from greenconn.green.retry import attempts
from greenconn.transport.SQS.exceptions import (
    AccessDeniedQueueException,
    DoesNotExistQueueException,
    ServiceBusy,
    UndefinedQueueException,
    as_error,
)
from greenconn.transport.SQS.options import SQSOptions
from greenconn.transport.SQS.service import BUSY, Service
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration

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
        done = {each.get("Id") for each in response.get("Successful") or ()}
        failed = {each.get("Id"): each for each in response.get("Failed") or ()}
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
_TABLE: Final = {ord(each): "_" for each in string.punctuation if each not in "-_."} | {46: "-"}


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
#: Seconds in which SQS may still say of a new queue that there is none (CreateQueue: "wait at least one
#: second"), and between two requests until then.
SETTLING: Final = 3.0
SETTLING_PAUSE: Final = 0.25


class NewQueues(dict[str, float]):
    """The queues that were made here, with the times; shared by all links of a transport."""

    def add(self, name: str) -> None:
        """Note that a queue was made now, and forget those known everywhere.  Never switches."""
        now = monotonic()
        for each, made_at in list(self.items()):  # at once: other threads note theirs
            if now - made_at > SETTLING:
                self.pop(each, None)
        self[name] = now

    def call(
        self, name: str, request: Callable[[Deadline], dict[str, Any]], deadline: Deadline
    ) -> dict[str, Any]:
        """Make a request about a queue, again while SQS may not know everywhere that it is there.

        May switch.

        Arguments:
            request: makes it once, until the deadline that it is given.
            deadline: of all requests together.

        Raises:
            DoesNotExistQueueException: there is no such queue, and it was not made a moment ago.
            ServiceBusy: it was made a moment ago, and was not known before the deadline.
        """
        while True:
            try:
                return request(deadline)
            except DoesNotExistQueueException as exc:
                made_at = self.get(name)
                if made_at is None or monotonic() - made_at > SETTLING:
                    raise
                left = deadline.left()
                if left is not None and left <= SETTLING_PAUSE:
                    raise ServiceBusy(
                        f"queue {name!r} was made a moment ago, and SQS did not know it everywhere "
                        f"within {deadline.timeout:g} s: try again, or raise reply_timeout"
                    ) from exc
            sleep(SETTLING_PAUSE)


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
        service: SQS, for all that are not predefined.
        service_of: that of a predefined queue, by its settings.  May switch.
        declared: what is known of how queues were declared, kept for all links of a transport: SQS
            does not keep it.
        new: the queues that were made a moment ago.
    """

    def __init__(
        self,
        service: Service,
        options: SQSOptions,
        service_of: Callable[[Mapping[str, Any]], Service],
        declared: dict[str, Declaration],
        new: NewQueues,
    ) -> None:
        self._service = service
        self._options = options
        self._service_of = service_of
        self._known: dict[str, SqsQueue] = {}
        self._declared = declared
        self._new = new

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
        return self._note(name, aws, settings["url"], self._service_of(settings), settings)

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
