"""The declaring half of a channel, where it differs from amqp's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amqp import spec
from amqp.protocol import queue_declare_ok_t
from amqp.serialization import dumps, loads

from greenconn.transport.amqp.rpc import Reply

__all__ = ["Topology"]


class Topology:
    """What a channel does to declare; mixed into ``Channel``.  The rest is amqp's own."""

    call: Callable[..., Any]
    send_method: Callable[..., Any]
    _note_kind: Callable[[str, Any], None]
    _gone: BaseException | None

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: Any = None,
        argsig: str = "BsbbbbbF",
    ) -> Any:
        """Declare a queue.  May switch.

        A queue that the broker named is deleted when its caller is killed before it knows the name.

        Returns:
            Name, number of messages and of consumers; None with *nowait*.
        """
        reply = self.send_method(
            spec.Queue.Declare,
            argsig,
            (0, queue, passive, durable, exclusive, auto_delete, nowait, arguments),
            wait=None if nowait else spec.Queue.DeclareOk,
            returns_tuple=True,
            undo=None if queue else self._undo_declare,
        )
        self._note_kind(queue or reply[0], arguments)
        return None if nowait else queue_declare_ok_t(*reply)

    def _undo_declare(self, reply: Reply) -> None:
        if self._gone is None:
            name = loads("s", reply[1], 4)[0][0]
            self.call(spec.Queue.Delete, dumps("Bsbbb", (0, name, False, False, True)))
