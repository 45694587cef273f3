"""The calling half of a channel: methods that are sent, and the wait for their replies.

Every switch (the gate of the writer) comes before the first byte.  Writing a method and putting its
call into the line is one step without a switch, so replies reach their callers in order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amqp.serialization import dumps
from gevent import get_hub
from gevent.hub import Hub

from greenconn.exceptions import ContentTooLarge, FrameError, FrameSyntaxError
from greenconn.transport.amqp.arguments import read_arguments
from greenconn.transport.amqp.rpc import (
    Call,
    CallLine,
    OnReply,
    Undo,
    expected_of,
    ids_of,
)
from greenconn.wire.acks import AckLedger
from greenconn.wire.amqp import method_frame

if TYPE_CHECKING:
    from greenconn.green.writer import Writer
    from greenconn.transport.amqp.connection import AmqpLink

__all__ = ["Calling"]


class Calling:
    """What a channel does to ask the broker for something; mixed into ``Channel``."""

    connection: AmqpLink
    channel_id: int
    check_open: Callable[[], None]
    flush_acks: Callable[[], None]
    interrupted: Callable[[str, BaseException], None]
    _METHODS: Any  # amqp's table
    _calls: CallLine
    _gone: BaseException | None
    _hub: Hub
    _ledger: AckLedger
    _room: int
    _writer: Writer

    def send_method(
        self,
        sig: tuple[int, int],
        format: str | None = None,
        args: Any = None,
        content: Any = None,
        wait: Any = None,
        callback: Callable[[], Any] | None = None,
        returns_tuple: bool = False,
        *,
        undo: Undo | None = None,
        on_reply: OnReply | None = None,
        tag: bytes | None = None,
        abandons: bool = False,
    ) -> Any:
        """Write a method and, with *wait*, return its reply.  May switch.

        Arguments:
            abandons: do not wait for the reply, and return None; nobody gets its error.
            undo: what to do with the reply when the caller was killed before it had it.
            on_reply: what the reader notes when the reply comes.
            tag: see :class:`~greenconn.transport.amqp.rpc.Call`.
        """
        self.check_open()
        arguments = self.pack(sig, format, args) if format else b""
        self.pass_gate()
        return self.call(
            sig,
            arguments,
            wait=wait,
            returns_tuple=returns_tuple,
            undo=undo,
            on_reply=on_reply,
            tag=tag,
            abandons=abandons,
        )

    def check_hub(self) -> None:
        """Raise if the caller is in another thread than the connection.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        self.connection.home.check(self)

    def pass_gate(self) -> None:
        """Wait for the turn to write.  May switch.

        Raises:
            WrongHub: the caller is in another thread than the connection.
            RecoverableChannelError, RecoverableConnectionError: the channel is gone by then.
        """
        if get_hub() is not self._hub:
            self.check_hub()
        if self._writer.gate:
            self.connection.gate.pass_through()
        if self._gone is not None:
            self.check_open()

    def pack(self, sig: tuple[int, int], format: str, args: Any) -> bytes:
        """The arguments of a method, so that nothing can go wrong between the gate and the write.

        Raises:
            ValueError: one does not fit its field.
            ContentTooLarge: all together do not fit into a frame.
        """
        try:
            arguments: bytes = dumps(format, args)
        except (struct.error, FrameSyntaxError) as exc:
            # The latter, of amqp, would pass for an error of the connection.
            raise ValueError(f"an argument of method {sig} does not fit its field: {exc}") from exc
        if len(arguments) + 4 > self._room:
            # The broker would close the whole connection.
            raise ContentTooLarge(
                f"arguments of {len(arguments)} bytes do not fit into a frame", sig
            )
        return arguments

    def call(
        self,
        sig: tuple[int, int],
        arguments: bytes,
        *,
        wait: Any = None,
        returns_tuple: bool = False,
        undo: Undo | None = None,
        on_reply: OnReply | None = None,
        tag: bytes | None = None,
        abandons: bool = False,
    ) -> Any:
        """Write a method whose caller has passed the gate.  Switches only to wait for the reply."""
        call = self.begin_call(sig, arguments, wait, undo, on_reply, tag)
        if call is None:
            return None
        if abandons:
            call.abandon()
            return None
        return self.end_call(call, returns_tuple=returns_tuple)

    def begin_call(
        self,
        sig: tuple[int, int],
        arguments: bytes,
        wait: Any = None,
        undo: Undo | None = None,
        on_reply: OnReply | None = None,
        tag: bytes | None = None,
    ) -> Call | None:
        """Write a method and put its call in line, if it has a reply, in one step.  Never switches."""
        if self._ledger.pending:
            self.flush_acks()
        frame = method_frame(self.channel_id, sig, arguments)
        call = None
        if wait:
            call = Call(ids_of(sig), expected_of(wait), undo, on_reply, tag)
            self.write_call(frame, call)
        else:
            self._writer.write(frame)
        if self._gone is not None:
            self.check_open()  # the connection ended in that very write
        return call

    def write_call(self, frame: bytes, call: Call) -> None:
        """Put *call* in line and write its method in one step.  Never switches."""
        try:
            self._calls.append(call)
            self._writer.write(frame)
        except BaseException as exc:
            # From a signal: replies to others might be taken for this one's.
            self.interrupted("a call", exc)
            raise

    def end_call(self, call: Call, *, returns_tuple: bool = False) -> Any:
        """Wait for the reply to *call*, and return it.  May switch."""
        try:
            ids, payload, header, body = self.connection.wait_reply(
                call.slot, self.channel_id, None
            )
        except BaseException:
            call.give_up()
            raise
        try:
            args = self._decode(ids, payload)
        except FrameError as exc:
            self.connection.end(exc)  # the two sides no longer agree
            raise
        if header is not None:
            args.append((payload, header, body))
        return args if returns_tuple else (args and args[0])

    def _decode(self, ids: int, payload: bytes) -> list[Any]:
        known = self._METHODS[(ids >> 16, ids & 0xFFFF)]
        return read_arguments(ids, known.args, payload) if known.args else []
