"""A transport over kombu's hooks, as somebody would write it: lists that are put into and got from."""

from __future__ import annotations

from collections import deque
from queue import Empty
from typing import Any

from tests.compat.programs.library import Library


def hooked(lib: Library) -> Any:
    """Return a transport class over the virtual layer of *lib*; its links share everything."""
    virtual = Library(f"{lib.root}.transport").virtual
    queues: dict[str, deque[Any]] = {}

    class Message(virtual.Message):  # type: ignore[misc, name-defined]
        """One whose body is text where it was sent as text, as over AMQP."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.body: Any
            if isinstance(self.body, bytes) and self.content_encoding == "utf-8":
                try:
                    self.body = self.body.decode()
                except UnicodeDecodeError:
                    pass

    class Channel(virtual.Channel):  # type: ignore[misc, name-defined]
        def _new_queue(self, queue: str, **kwargs: Any) -> None:
            queues.setdefault(queue, deque())

        def _has_queue(self, queue: str, **kwargs: Any) -> bool:
            return queue in queues

        def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
            queues.setdefault(queue, deque()).append(message)

        def _get(self, queue: str, timeout: float | None = None) -> Any:
            if not queues.get(queue):
                raise Empty
            return queues[queue].popleft()

        def _size(self, queue: str) -> int:
            return len(queues.get(queue, ()))

        def _purge(self, queue: str) -> int:
            size = self._size(queue)
            queues[queue].clear()
            return size

        def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
            queues.pop(queue, None)

    Channel.Message = Message

    class Transport(virtual.Transport):  # type: ignore[misc, name-defined]
        driver_type = "hooks"
        driver_name = "hooks"
        polling_interval = 0.01
        default_port = 4711
        global_state = virtual.BrokerState()

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.state = self.global_state

        def driver_version(self) -> str:
            return "1"

    Transport.Channel = Channel
    return Transport
