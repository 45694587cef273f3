"""Utilities (carrot.utils)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from greenconn.checks import Seconds, in_seconds
from greenconn.green.deadline import NEVER
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.identity import uuid

__all__ = ["gen_unique_id", "partition", "repeatlast", "retry_over_time", "rpartition"]

T = TypeVar("T")


def gen_unique_id() -> str:
    """Return a random UUID as text."""
    return uuid()


def partition(S: str, sep: str) -> tuple[str, str, str]:  # noqa: N803 - carrot's name
    """Split at the first *sep*."""
    return S.partition(sep)


def rpartition(S: str, sep: str) -> tuple[str, str, str]:  # noqa: N803 - carrot's name
    """Split at the last *sep*."""
    return S.rpartition(sep)


def repeatlast(it: Iterable[T]) -> Iterator[T]:
    """Yield what *it* gives, then its last item for ever."""
    item: Any = None
    for item in it:
        yield item
    while True:
        yield item


def retry_over_time(
    fun: Callable[..., T],
    catch: type[BaseException] | tuple[type[BaseException], ...],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    errback: Callable[[BaseException, float], Any] | None = None,
    max_retries: int | None = None,
    interval_start: Seconds = 2,
    interval_step: Seconds = 2,
    interval_max: Seconds = 30,
) -> T:
    """Call ``fun(*args, **kwargs)`` until it raises none of *catch*.  May switch.

    Arguments:
        errback: called as ``errback(exc, interval)`` before each wait.
        max_retries: calls after the first; None or 0 is without limit.
        interval_start, interval_step, interval_max: seconds of the first wait, how many more each
            time, and at most.

    Raises:
        BaseException: what the last call raised.
    """
    start, step, longest = map(in_seconds, (interval_start, interval_step, interval_max))
    policy = RetryPolicy(
        first=float(min(start, longest)),
        step=step,
        factor=1.0,
        longest=longest,
        jitter=0.0,
        tries=max_retries + 1 if max_retries else None,
    )
    for attempt in attempts(policy, NEVER, lambda exc: isinstance(exc, catch)):
        with attempt:
            return fun(*args, **(kwargs or {}))
        if errback and attempt.error is not None:
            errback(attempt.error, attempt.interval)
    raise AssertionError("unreachable")
