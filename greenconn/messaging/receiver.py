"""What becomes of a message that a consumer receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenconn.checks import check_has_run, check_runs
from greenconn.green.duty import DUTY
from greenconn.message import Message

__all__ = ["Receiver"]


class Receiver:
    """The receiving half of a consumer.

    Attributes:
        callbacks: called in order as ``callback(body, message)``.
        on_message: called as ``on_message(message)`` instead of them; nothing is decoded then.
        on_decode_error: called as ``on_decode_error(message, exc)`` when a body cannot be decoded.
        accept: the accepted content types; None accepts all that are not disabled.
    """

    callbacks: Any = None
    on_message: Callable[[Any], Any] | None = None
    on_decode_error: Callable[[Any, Exception], Any] | None = None
    accept: Any = None

    _channel: Any = None

    def register_callback(self, callback: Callable[..., Any]) -> None:
        """Call ``callback(body, message)`` too.

        Raises:
            TypeError: a call of it would run nothing, since it is ``async def`` or a generator.
        """
        check_runs("callback", callback)
        self.callbacks.append(callback)

    def check_callbacks(self) -> None:
        """Refuse to consume for functions of which a call runs nothing.

        Raises:
            TypeError: one is ``async def`` or a generator.
        """
        for callback in self.callbacks or ():
            check_runs("callback", callback)
        for name in ("on_message", "on_decode_error", "receive"):
            check_runs(name, getattr(self, name))

    def receive(self, body: Any, message: Message) -> None:
        """Call the callbacks.

        Raises:
            NotImplementedError: there are none.
        """
        if not self.callbacks:
            raise NotImplementedError(
                "this consumer has nobody to give messages to: register a callback or set on_message"
            )
        for callback in self.callbacks:
            if DUTY.handler is not callback:
                DUTY.change(callback)
            result = callback(body, message)
            if result is not None:
                check_has_run("a callback", result)

    def _receive_callback(self, message: Message) -> Any:
        """Take one delivery; in the greenlet that drains."""
        on_message: Any = self.on_message
        body = None
        try:
            is_ours = isinstance(message, Message)
            if not is_ours:  # the raw one of a channel of another library
                to_python = getattr(self._channel, "message_to_python", None)
                if to_python is not None:
                    message = to_python(message)
            if self.accept is not None:
                message.accept = self.accept
            # Decoding ours raises its errors; to look at them first would cost more than to decode.
            if (on_message is not None or not is_ours) and message.errors:
                message._reraise_error()
            if on_message is None:
                body = message.decode()
        except Exception as exc:
            if self.on_decode_error is None:
                raise
            return self.on_decode_error(message, exc)
        if on_message is None:
            # A subclass may return something.
            result: object = self.receive(body, message)  # type: ignore[func-returns-value]
            if result is not None:
                check_has_run("receive", result)
            return result
        if DUTY.handler != on_message:  # perhaps a method, which is another object each time
            DUTY.change(on_message)
        result = on_message(message)
        if result is not None:
            check_has_run("on_message", result)
        return result
