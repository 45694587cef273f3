"""The outside of handlers under test: a store that is reached over a network, in memory and in Redis.

The same handlers run in torture tests, where the store is a dict, and in processes that are killed,
where it is a Redis.  Each operation takes effect, and then its reply is waited for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gevent


class World:
    """A store whose operations take effect before their callers know it."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def _reply(self) -> None:
        """Wait for the reply of an operation."""
        gevent.sleep(0)

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()

    def peek(self, key: str, default: Any = None) -> Any:
        """Return a value at once, for checks."""
        return self._values.get(key, default)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value."""
        found = self.peek(key, default)
        self._reply()
        return found

    def set(self, key: str, value: Any) -> None:
        """Set a value."""
        self._values[key] = value
        self._reply()

    def delete(self, key: str) -> None:
        """Forget a value."""
        self._values.pop(key, None)
        self._reply()

    def increment(self, key: str, by: int = 1) -> int:
        """Add to a number, and return it."""
        found = int(self._values.get(key, 0)) + by
        self._values[key] = found
        self._reply()
        return found

    def append(self, key: str, value: Any) -> None:
        """Add to a list."""
        self._values[key] = [*self._values.get(key, []), value]
        self._reply()

    def add(self, key: str, value: Any) -> bool:
        """Add to the list what is not in it; return whether it was added."""
        found = self._values.get(key, [])
        is_new = value not in found
        if is_new:
            self._values[key] = [*found, value]
        self._reply()
        return is_new

    def set_newer(self, key: str, version: int, value: Any) -> None:
        """Set a value unless that of a later version is there."""
        if self._values.get(key, (0,))[0] < version:
            self._values[key] = (version, value)
        self._reply()


class RedisWorld(World):
    """The same in Redis: it outlives the process.

    Arguments:
        client: of redis-py.
        prefix: of the keys.
        on_reply: called when an operation has taken effect, and others had their turn.
    """

    def __init__(
        self, client: Any, prefix: str, on_reply: Callable[[], None] = lambda: None
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._on_reply = on_reply

    def _reply(self) -> None:
        gevent.sleep(0)
        self._on_reply()

    def clear(self) -> None:
        """Forget all."""
        for key in self._client.keys(f"{self._prefix}*"):
            self._client.delete(key)

    def peek(self, key: str, default: Any = None) -> Any:
        """Return a value at once."""
        found = self._client.get(self._prefix + key)
        return default if found is None else json.loads(found)

    def set(self, key: str, value: Any) -> None:
        """Set a value."""
        self._client.set(self._prefix + key, json.dumps(value))
        self._reply()

    def delete(self, key: str) -> None:
        """Forget a value."""
        self._client.delete(self._prefix + key)
        self._reply()

    def increment(self, key: str, by: int = 1) -> int:
        """Add to a number, and return it."""
        found = int(self._client.incrby(self._prefix + key, by))
        self._reply()
        return found

    # One process at a time has handlers, and these do not switch: each of them is one operation.

    def append(self, key: str, value: Any) -> None:
        """Add to a list."""
        found = self.peek(key, [])
        self._client.set(self._prefix + key, json.dumps([*found, value]))
        self._reply()

    def add(self, key: str, value: Any) -> bool:
        """Add to the list what is not in it; return whether it was added."""
        found = self.peek(key, [])
        if value not in found:
            self._client.set(self._prefix + key, json.dumps([*found, value]))
        self._reply()
        return value not in found
