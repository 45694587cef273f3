"""Declarations of queues, as the server keeps them for all programs, and the policies in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple

from greenconn.jsoncodec import dumps, loads

__all__ = ["COMPARED_ARGUMENTS", "UNDECLARED", "DeadLetterTarget", "Declaration", "QueuePolicy"]


class DeadLetterTarget(NamedTuple):
    """The target of a queue's dead letters.

    Attributes:
        routing_key: None keeps the message's own.
    """

    exchange: str
    routing_key: str | None


OVERFLOWS = ("drop-head", "reject-publish", "reject-publish-dlx")
QUEUE_TYPES = ("classic", "quorum")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePolicy:
    """The rules of one queue.  None: no such rule."""

    #: The arguments that say them.
    ARGUMENTS: ClassVar[frozenset[str]] = frozenset(
        {
            "x-dead-letter-exchange",
            "x-dead-letter-routing-key",
            "x-expires",
            "x-max-length",
            "x-max-length-bytes",
            "x-max-priority",
            "x-message-ttl",
            "x-overflow",
            "x-single-active-consumer",
        }
    )

    message_ttl: float | None = None  # seconds that a message may wait; 0 only for a free consumer
    expires: float | None = None  # seconds without use after which the queue is deleted; above 0
    max_length: int | None = None  # messages that may wait
    max_length_bytes: int | None = None  # bytes of bodies that may wait
    overflow: str = "drop-head"  # what happens to a message that is too many
    dead_letter_exchange: str | None = None  # "" is the default exchange
    dead_letter_routing_key: str | None = None  # None keeps the message's own
    max_priority: int | None = None  # None: a queue without priorities
    is_single_active: bool = False  # only the oldest consumer is served

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> QueuePolicy:
        """Read the ``x-`` arguments of a declaration.

        Raises:
            ValueError: says which argument cannot be.
        """
        ttl_ms = _number(arguments, "x-message-ttl")
        expires_ms = _number(arguments, "x-expires", least=1)
        target = arguments.get("x-dead-letter-exchange")
        if target is None and arguments.get("x-dead-letter-routing-key") is not None:
            raise ValueError("invalid arg 'x-dead-letter-routing-key': no dead-letter exchange")
        _one_of(arguments, "x-queue-type", QUEUE_TYPES)
        return cls(
            message_ttl=None if ttl_ms is None else ttl_ms / 1000,
            expires=None if expires_ms is None else expires_ms / 1000,
            max_length=_number(arguments, "x-max-length"),
            max_length_bytes=_number(arguments, "x-max-length-bytes"),
            overflow=_one_of(arguments, "x-overflow", OVERFLOWS) or "drop-head",
            dead_letter_exchange=target,
            dead_letter_routing_key=arguments.get("x-dead-letter-routing-key"),
            max_priority=_number(arguments, "x-max-priority", most=255),
            is_single_active=bool(arguments.get("x-single-active-consumer")),
        )

    def dead_letter_target(self, queue: str, default: str | None) -> DeadLetterTarget | None:
        """Return where the dead letters of *queue* go; None: they are dropped.

        Arguments:
            default: the queue for those of queues that name no exchange; None: there is none.
        """
        if self.dead_letter_exchange is not None:
            return DeadLetterTarget(self.dead_letter_exchange, self.dead_letter_routing_key)
        return None if default is None or default == queue else DeadLetterTarget("", default)

    @property
    def is_bounded(self) -> bool:
        """Whether there is a limit of length."""
        return self.max_length is not None or self.max_length_bytes is not None

    @property
    def refuses_overflow(self) -> bool:
        """Whether a message that is too many is refused, rather than the oldest dropped."""
        return self.is_bounded and self.overflow != "drop-head"

    def is_above(self, count: int, size: int) -> bool:
        """Return whether *count* messages of *size* bytes together are too many."""
        return (self.max_length is not None and count > self.max_length) or (
            self.max_length_bytes is not None and size > self.max_length_bytes
        )


#: Queue arguments that a second declaration must repeat.
COMPARED_ARGUMENTS: Final = QueuePolicy.ARGUMENTS | {"x-delivery-limit"}


def _number(
    arguments: Mapping[str, Any], name: str, *, least: int = 0, most: int | None = None
) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"invalid arg '{name}': {value!r} is not an integer")
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"invalid arg '{name}': {value} is not {bounds}")
    return value


def _one_of(arguments: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    value = arguments.get(name)
    if value is not None and value not in known:
        raise ValueError(f"invalid arg '{name}': {value!r} is not one of {', '.join(known)}")
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """The declaration of a queue.

    Attributes:
        owner: the link that it is exclusive to; None for all.
    """

    durable: bool = False
    auto_delete: bool = False
    owner: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, text: bytes) -> Declaration:
        """Read what the server keeps; a text that cannot be read says nothing."""
        try:
            kept = loads(text)
            owner = kept["owner"]
            if not isinstance(owner, (str, type(None))):
                return cls()
            return cls(
                durable=bool(kept["durable"]),
                auto_delete=bool(kept["auto_delete"]),
                owner=owner,
                arguments=dict(kept["arguments"]),
            )
        except (ValueError, LookupError, TypeError, RecursionError):
            return cls()

    def text(self) -> str:
        """Return the form in which the server keeps it."""
        return dumps(
            {
                "durable": self.durable,
                "auto_delete": self.auto_delete,
                "owner": self.owner,
                "arguments": dict(self.arguments),
            }
        )

    @property
    def policy(self) -> QueuePolicy:
        """The policy of its arguments; those of foreign programs may be of any kind."""
        try:
            return QueuePolicy.of(self.arguments)
        except (ValueError, OverflowError):
            return QueuePolicy()

    def delivery_limit(self, default: int | None) -> int | None:
        """Return the delivery limit; None: no limit.

        Arguments:
            default: what counts where it does not say, or nothing that can be.
        """
        limit = self.arguments.get("x-delivery-limit")
        if isinstance(limit, bool) or not isinstance(limit, int):
            return default
        return None if limit < 0 else limit  # RabbitMQ's -1 is no limit

    @property
    def expires_ms(self) -> int | None:
        """Milliseconds without use after which the queue is deleted; None: never."""
        seconds = self.policy.expires
        return None if seconds is None else int(seconds * 1000)


#: A queue of which nothing is known but that it is there: who declares it says what it is.
UNDECLARED: Final = Declaration()
