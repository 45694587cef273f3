"""Functional utilities, and retries (kombu.utils.functional)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

from gevent import sleep

from greenconn.abstract import ChannelPromise as _ChannelPromise
from greenconn.caching import (
    LRUCache,
    dictfilter,
    is_list,
    lazy,
    maybe_evaluate,
    maybe_list,
    memoize,
)
from greenconn.checks import Seconds, in_seconds
from greenconn.encoding import safe_repr
from greenconn.green.deadline import Deadline
from greenconn.session.broker import shufflecycle

__all__ = [
    "ChannelPromise",
    "LRUCache",
    "accepts_argument",
    "dictfilter",
    "fxrange",
    "fxrangemax",
    "is_list",
    "lazy",
    "maybe_evaluate",
    "maybe_list",
    "maybe_promise",
    "memoize",
    "promise",
    "reprcall",
    "reprkwargs",
    "retry_over_time",
    "shufflecycle",
]

T = TypeVar("T")

#: Names of kombu before 3.0.
promise = lazy
maybe_promise = maybe_evaluate


class ChannelPromise(_ChannelPromise):
    """The promise of a channel, which is made once and kept.

    Arguments:
        contract: returns the channel.
    """

    _channel: Any = None

    def __call__(self) -> Any:
        """Return the channel.  May switch."""
        if self._channel is None:
            self._channel = super().__call__()
        return self._channel

    def __repr__(self) -> str:
        if self._channel is None:
            return f"<promise: {id(self):#x}>"
        return repr(self._channel)


def fxrange(
    start: float = 1.0, stop: float | None = None, step: float = 1.0, repeatlast: bool = False
) -> Iterator[float]:
    """Yield *start*, then *step* more each time, up to *stop* (included; None: for ever).

    Arguments:
        repeatlast: go on with the last number instead of ending.
    """
    number = float(start)
    while not stop or number <= stop:
        yield number
        number += step
    while repeatlast:
        yield number - step


def fxrangemax(
    start: float = 1.0, stop: float | None = None, step: float = 1.0, max: float = 100.0
) -> Iterator[float]:
    """Yield numbers as :func:`fxrange` does, none above *stop*.

    Arguments:
        max: ends when the sum of the numbers, the first one apart, reaches it.
    """
    total, number = 0.0, float(start)
    while total < max:
        yield number
        number = min(number + step, stop) if stop else number + step
        total += number


def retry_over_time(
    fun: Callable[..., T],
    catch: type[BaseException] | tuple[type[BaseException], ...],
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    errback: Callable[[BaseException, Iterator[float], int], float] | None = None,
    max_retries: int | None = None,
    interval_start: Seconds = 2,
    interval_step: Seconds = 2,
    interval_max: Seconds = 30,
    callback: Callable[[], Any] | None = None,
    timeout: Seconds | None = None,
) -> T:
    """Call ``fun(*args, **kwargs)`` until it raises none of *catch*.  May switch.

    Arguments:
        errback: called as ``errback(exc, intervals, retries)``; returns the seconds to wait.
        max_retries: calls after the first; None is without limit.
        interval_start: seconds before the first repetition.
        interval_step: how many seconds longer each wait is.
        interval_max: seconds of the longest wait.
        callback: called before each wait and once a second meanwhile; what it raises ends all.
        timeout: seconds after which nothing is repeated; None is without limit.

    Raises:
        BaseException: what the last call raised.
    """
    start, step, longest = map(in_seconds, (interval_start, interval_step, interval_max))
    intervals = (
        min(seconds, float(longest))
        for seconds in fxrange(start, longest + start, step, repeatlast=True)
    )
    deadline = Deadline(timeout or None)
    for retries in count():
        try:
            return fun(*(args or ()), **(kwargs or {}))
        except catch as exc:
            if deadline.has_ended or (max_retries is not None and retries >= max_retries):
                raise
            if callback:
                callback()
            wait = errback(exc, intervals, retries) if errback else next(intervals)
        _sleep(min(float(wait), float(longest)), callback)
    raise AssertionError("count() does not end")  # pragma: no cover


def _sleep(seconds: float, callback: Callable[[], Any] | None) -> None:
    while seconds > 0.0:
        if callback and seconds >= 1.0:
            callback()
        sleep(min(seconds, 1.0))
        seconds -= 1.0


def reprkwargs(kwargs: Mapping[str, Any], sep: str = ", ", fmt: str = "{0}={1}") -> str:
    """Return keyword arguments as they are written in a call."""
    return sep.join(fmt.format(name, safe_repr(value)) for name, value in kwargs.items())


def reprcall(
    name: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    sep: str = ", ",
) -> str:
    """Return a call as it is written."""
    shown = [*map(safe_repr, args or ())]
    if kwargs:
        shown.append(reprkwargs(kwargs, sep))
    return f"{name}({sep.join(shown)})"


def accepts_argument(func: Callable[..., Any], argument_name: str) -> bool:
    """Return whether a function names an argument *argument_name*."""
    spec = inspect.getfullargspec(func)
    return argument_name in (*spec.args, *spec.kwonlyargs)
