"""Arguments that a transport does not implement: a warning in the log names them.

RabbitMQ's arguments (``x-message-ttl``, ``x-max-length``...), properties (``expiration``, ``priority``)
and headers (``x-delay``, ``CC``) change what happens to messages.  A transport that ignores one of them
without a word confirms messages that never expire, or never arrive.  So each transport lists what it
implements, and the channel methods that take arguments compare.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from greenconn.green.hub import PerHub

logger = logging.getLogger("greenconn.transport.arguments")


class ArgumentOf(Enum):
    """The thing that an argument belongs to."""

    QUEUE = "queue"
    EXCHANGE = "exchange"
    CONSUMER = "consumer of queue"
    MESSAGE = "messages to"


#: RabbitMQ's arguments, and the properties and headers of messages, that change what a program sees.
#: Those that only say where and how RabbitMQ keeps a queue are not among them.
KNOWN: Final[Mapping[ArgumentOf, tuple[str, ...]]] = {
    ArgumentOf.QUEUE: (
        "x-consumer-timeout",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-delayed-retry-max",
        "x-delayed-retry-min",
        "x-delayed-retry-type",
        "x-delivery-limit",
        "x-expires",
        "x-max-age",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-message-ttl",
        "x-overflow",
        "x-queue-type",
        "x-single-active-consumer",
    ),
    ArgumentOf.EXCHANGE: ("alternate-exchange", "x-delayed-type"),
    ArgumentOf.CONSUMER: (
        "x-consumer-timeout",
        "x-priority",
        "x-stream-filter",
        "x-stream-match-unfiltered",
        "x-stream-offset",
    ),
    ArgumentOf.MESSAGE: ("priority", "expiration", "x-delay", "CC", "BCC"),
}
#: Values that say nothing but what each transport does.
_DEFAULTS: Final = {"x-queue-type": "classic", "x-dead-letter-strategy": "at-most-once"}
#: Names under which one argument is warned about, for one broker.
_MOST_NAMES: Final = 100
#: Begins the names that a broker makes up; all of them count as one.
_GENERATED: Final = "amq.gen-"


@dataclass(frozen=True, kw_only=True)
class SupportedArguments:
    """The arguments, of :data:`KNOWN`, that one transport implements.

    Attributes:
        queue: of ``queue_declare``.
        exchange: of ``exchange_declare``.
        consumer: of ``basic_consume``.
        message: properties and headers of published messages.
    """

    queue: frozenset[str] = frozenset()
    exchange: frozenset[str] = frozenset()
    consumer: frozenset[str] = frozenset()
    message: frozenset[str] = frozenset()

    def of(self, kind: ArgumentOf) -> frozenset[str]:
        """Return those of one kind."""
        if kind is ArgumentOf.QUEUE:
            return self.queue
        if kind is ArgumentOf.EXCHANGE:
            return self.exchange
        return self.consumer if kind is ArgumentOf.CONSUMER else self.message

    def missing(self, kind: ArgumentOf, arguments: Mapping[str, Any]) -> list[str]:
        """Return the names of those of *arguments* that are not implemented."""
        supported = self.of(kind)
        return [
            name
            for name in KNOWN[kind]
            if name not in supported
            and arguments.get(name) is not None
            and arguments[name] != _DEFAULTS.get(name)
        ]


class _Warned:
    """The warnings that were given."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, ArgumentOf, str, str]] = set()
        self._counts: Counter[tuple[str, ArgumentOf, str]] = Counter()

    def note(self, where: str, kind: ArgumentOf, name: str, argument: str) -> bool:
        """Return whether a warning is due."""
        key = (where, kind, name, argument)
        if key in self._seen or self._counts[where, kind, argument] >= _MOST_NAMES:
            return False
        self._seen.add(key)
        self._counts[where, kind, argument] += 1
        return True


_warned_of: Final[PerHub[_Warned]] = PerHub(_Warned)


def warn_of_unsupported(
    supported: SupportedArguments,
    client: Any,
    kind: ArgumentOf,
    name: str,
    arguments: Mapping[str, Any] | None,
) -> None:
    """Log the arguments that are not implemented, once for each thing and argument.  Never switches.

    Arguments:
        supported: those of the transport.
        client: the ``Connection``, whose URL the warning names.
        name: of the queue, the exchange, or what messages go to.
        arguments: as they were given; of a message its properties and headers.
    """
    if not arguments:
        return
    missing = supported.missing(kind, arguments)
    if not missing:
        return
    warned, where = _warned_of.get(), client.as_uri()
    key = _GENERATED if name.startswith(_GENERATED) else name
    due = [each for each in missing if warned.note(where, kind, key, each)]
    if due:
        logger.warning(
            "%s: %s %r: arguments that this transport does not implement are ignored: %s "
            '(docs/transports.rst, "Arguments")',
            where,
            kind.value,
            name,
            ", ".join(f"{each}={arguments[each]!r}" for each in due),
        )
