"""The process that listens to a mailbox."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from greenconn import messaging
from greenconn.checks import check_has_run, check_runs
from greenconn.exceptions import (
    ChannelError,
    InconsistencyError,
    ResourceLocked,
    SerializationError,
    SerializerNotInstalled,
)
from greenconn.log import get_logger
from greenconn.matcher import match
from greenconn.pidbox.replies import clock_of

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message

__all__ = ["W_PIDBOX_IN_USE", "Node"]

logger = get_logger("greenconn.pidbox")

#: What is wrong with a reply or its address, not with the connection.
_UNSENT: Final = (ChannelError, SerializationError, SerializerNotInstalled, TypeError, ValueError)

W_PIDBOX_IN_USE: Final = (
    "A node named {node.hostname} is already using this process mailbox: shut the other one down, "
    "or give each node a name of its own."
)

Handler = Callable[..., Any]


class Node:
    """Carries out commands that come to a mailbox.

    A handler is called as ``handler(state, **arguments)``; what it returns is the reply.

    Arguments:
        hostname: the name of the node: commands may be for it alone.
        state: given to the handlers.
        channel: where it listens and replies.
        handlers: by the names of their commands.
        mailbox: the :class:`Mailbox` whose node it is.

    Attributes:
        refused: messages that were no commands, or could not be decoded.
    """

    hostname: Any = None
    mailbox: Any = None
    handlers: Any = None
    state: Any = None
    channel: Any = None

    def __init__(
        self,
        hostname: str,
        state: Any = None,
        channel: Channel | None = None,
        handlers: dict[str, Handler] | None = None,
        mailbox: Any = None,
    ) -> None:
        self.channel = channel
        self.mailbox = mailbox
        self.hostname = hostname
        self.state = state
        self.adjust_clock = mailbox.clock.adjust
        self.handlers = {} if handlers is None else handlers
        self.refused = 0

    def Consumer(  # noqa: N802 - kombu's name
        self,
        channel: Channel | None = None,
        no_ack: bool = True,
        accept: Any = None,
        **options: Any,
    ) -> messaging.Consumer:
        """Make the consumer of the node's queue; a warning tells if another node has it.  May switch.

        Arguments:
            accept: content types; None is what the mailbox says.
            options: of :class:`greenconn.Consumer`.

        Raises:
            InconsistencyError: another connection holds the exclusive queue.
        """
        queue = self.mailbox.get_queue(self.hostname)
        queue.on_declared = self._warn_of_others
        try:
            return messaging.Consumer(
                channel or self.channel,
                [queue],
                no_ack=no_ack,
                accept=self.mailbox.accept if accept is None else accept,
                **options,
            )
        except ResourceLocked as exc:
            raise InconsistencyError(W_PIDBOX_IN_USE.format(node=self)) from exc

    def _warn_of_others(self, name: str, messages: int, consumers: int) -> None:
        if consumers:
            warnings.warn(W_PIDBOX_IN_USE.format(node=self), stacklevel=2)

    def handler(self, fun: Handler) -> Handler:
        """Decorate a function to carry out the command of its name.

        Raises:
            TypeError: a call of it would run nothing, since it is ``async def`` or a generator.
        """
        check_runs("handler", fun)
        self.handlers[fun.__name__] = fun
        return fun

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Log a command that cannot be decoded."""
        self.refused += 1
        logger.error("cannot decode a command to %s: %r", self.hostname, exc)

    def listen(
        self, channel: Channel | None = None, callback: Callable[[Any, Any], Any] | None = None
    ) -> messaging.Consumer:
        """Consume commands; whoever drains the connection carries them out.  May switch.

        Arguments:
            callback: called as ``callback(body, message)``; None is :meth:`handle_message`.
        """
        consumer = self.Consumer(
            channel=channel,
            callbacks=[callback or self.handle_message],
            on_decode_error=self.on_decode_error,
        )
        consumer.consume()
        return consumer

    def dispatch(
        self,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        reply_to: Mapping[str, Any] | None = None,
        ticket: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Carry out a command and return its reply, which is also sent if *reply_to* is given.

        An error in the handler becomes the reply ``{"error": repr(exc)}``.
        """
        arguments = arguments or {}
        logger.debug("%s received %s%s", self.hostname, method, ", with reply" if reply_to else "")
        handle = self.handle_call if reply_to else self.handle_cast
        try:
            reply = handle(method, arguments)
        except Exception as exc:
            logger.exception("the command %s failed at %s", method, self.hostname)
            reply = {"error": repr(exc)}
        if reply_to:
            self._reply_to(reply_to, {self.hostname: reply}, ticket)
        return reply

    def _reply_to(self, address: Mapping[str, Any], reply: Any, ticket: str | None) -> None:
        """Send a reply where a command says; that there is no such place is its own matter."""
        try:
            # By keyword, as kombu calls it: a program's own may take only what it needs.
            self.reply(
                reply,
                exchange=address["exchange"],
                routing_key=address["routing_key"],
                ticket=ticket,
            )
        except _UNSENT as exc:
            self._refuse(f"its reply cannot be sent: {exc}")

    def handle(self, method: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Call the handler of a command.

        Raises:
            KeyError: there is none.
            TypeError: its call ran nothing.
        """
        reply = self.handlers[method](self.state, **(arguments or {}))
        if reply is not None:
            check_has_run("the handler", reply)
        return reply

    def handle_call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out a command that wants a reply."""
        return self.handle(method, arguments)

    def handle_cast(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out a command that wants none."""
        return self.handle(method, arguments)

    def handle_message(self, body: Mapping[str, Any], message: Message | None = None) -> Any:
        """Carry out the command in *body* if it is for this node.

        One that no mailbox sends is logged and counted in :attr:`refused`.
        """
        if message:
            self.adjust_clock(clock_of(message))
        if not _is_command(body):
            self._refuse("it is none")
            return None
        try:
            is_meant = self._is_meant(body)
        except Exception as exc:  # of a matcher, which anybody may register
            self._refuse(f"its pattern cannot be used: {exc!r}")
            return None
        return self.dispatch(**body) if is_meant else None

    def _refuse(self, why: str) -> None:
        self.refused += 1
        logger.error("a command to %s is passed over: %s", self.hostname, why)

    dispatch_from_message = handle_message

    def _is_meant(self, body: Mapping[str, Any]) -> bool:
        destination = body.get("destination")
        if destination:
            return self.hostname in ([destination] if isinstance(destination, str) else destination)
        pattern, matcher = body.get("pattern"), body.get("matcher")
        if pattern and matcher:
            return bool(match(self.hostname, pattern, matcher))
        return True

    def reply(
        self, data: Any, exchange: str, routing_key: str, ticket: str | None, **kwargs: Any
    ) -> None:
        """Send a reply.  May switch."""
        self.mailbox._publish_reply(
            data,
            exchange,
            routing_key,
            ticket,
            channel=self.channel,
            serializer=self.mailbox.serializer,
        )


def _is_command(body: Any) -> bool:
    """Whether *body* has the form of what a mailbox sends."""
    if not isinstance(body, Mapping) or not all(isinstance(name, str) for name in body):
        return False
    address = body.get("reply_to")
    return (
        isinstance(body.get("method"), str)
        and "self" not in body
        and isinstance(body.get("arguments") or {}, Mapping)
        and isinstance(body.get("destination") or (), (str, list, tuple))
        and isinstance(body.get("pattern") or "", str)
        and isinstance(body.get("matcher") or "", str)
        and (
            not address
            or (
                isinstance(address, Mapping)
                and isinstance(address.get("exchange"), str)
                and isinstance(address.get("routing_key"), str)
            )
        )
    )
