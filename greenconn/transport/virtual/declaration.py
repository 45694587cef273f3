"""Declarations of queues, as the server keeps them for all programs of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from greenconn.jsoncodec import dumps, loads
from greenconn.transport.virtual.policy import QueuePolicy

__all__ = ["UNDECLARED", "Declaration"]


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
        """The form in which the server keeps it."""
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

    def delivery_limit(self, otherwise: int | None) -> int | None:
        """The delivery limit; None: no limit.

        Arguments:
            otherwise: what counts where it does not say, or nothing that can be.
        """
        limit = self.arguments.get("x-delivery-limit")
        if isinstance(limit, bool) or not isinstance(limit, int):
            return otherwise
        return None if limit < 0 else limit  # RabbitMQ's -1 is no limit

    @property
    def expires_ms(self) -> int | None:
        """Milliseconds without use after which the queue is deleted; None: never."""
        seconds = self.policy.expires
        return None if seconds is None else int(seconds * 1000)


#: A queue of which nothing is known but that it is there: who declares it says what it is.
UNDECLARED: Final = Declaration()
