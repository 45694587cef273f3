"""Callbacks that do not keep their owner alive.

The hub holds its timers and watchers, and a greenlet that waits is never collected: what either of them
refers to lives as long as they do.  A connection that its program has dropped must not be kept by its
own reader or its own clock, so these refer weakly to what they serve.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast
from weakref import ref

from gevent.hub import Hub

__all__ = ["call_in_hub", "weakly"]

F = TypeVar("F", bound=Callable[..., Any])


def weakly(function: F) -> F:
    """Return *function* if it is no bound method, else one that calls it while its object lives.

    Later calls return None.  The object must not have ``__slots__`` without ``__weakref__``.
    """
    if not isinstance(function, MethodType):
        return function
    owner, method = ref(function.__self__), function.__func__

    def call(*args: Any) -> Any:
        living = owner()
        return None if living is None else method(living, *args)

    return cast(F, call)


def call_in_hub(hub: Hub, function: Callable[..., object], *args: Any) -> bool:
    """Have *function* called in *hub* soon.  Never switches; for ``__del__``, in any thread.

    Returns:
        False: that hub is gone, or the interpreter ends.
    """
    loop = None if sys.is_finalizing() else hub.loop
    if loop is None or hub.dead:
        return False
    loop.run_callback_threadsafe(function, *args)
    return True
