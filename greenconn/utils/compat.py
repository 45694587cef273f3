"""The environment of a program (kombu.utils.compat)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from importlib import metadata as importlib_metadata
from io import UnsupportedOperation
from multiprocessing.util import register_after_fork
from typing import Any, Final

from gevent import monkey

from greenconn.green.hub import get_gevent_concurrent_error

__all__ = [
    "FILENO_ERRORS",
    "coro",
    "detect_environment",
    "entrypoints",
    "fileno",
    "get_gevent_concurrent_error",
    "maybe_fileno",
    "nested",
    "register_after_fork",
]

FILENO_ERRORS: Final = (AttributeError, ValueError, UnsupportedOperation)


def coro(gen: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Generator[Any, Any, Any]]:
    """Decorate a generator function so that what it returns has been started."""

    @wraps(gen)
    def started(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = gen(*args, **kwargs)
        next(generator)
        return generator

    return started


def detect_environment() -> str:
    """Return "gevent" in a monkey-patched process, else "default"."""
    return "gevent" if monkey.is_module_patched("socket") else "default"


#: A name that some transports of kombu's use.
_detect_environment = detect_environment


def entrypoints(namespace: str) -> Iterator[tuple[importlib_metadata.EntryPoint, Any]]:
    """Yield the entry points of a group, and what each loads."""
    points = importlib_metadata.entry_points(group=namespace)
    return ((point, point.load()) for point in points)


def fileno(f: Any) -> int:
    """Return the descriptor of a file; a number is one.

    Raises:
        ValueError: *f* is None, or closed.
        AttributeError: it is not a file.
    """
    if isinstance(f, int):
        return f
    if f is None:
        raise ValueError("None has no file descriptor")
    number: int = f.fileno()
    return number


def maybe_fileno(f: Any) -> int | None:
    """Return the descriptor of a file, or None if it has none."""
    try:
        return fileno(f)
    except FILENO_ERRORS:
        return None


@contextmanager
def nested(*managers: AbstractContextManager[Any]) -> Iterator[list[Any]]:
    """Enter several context managers, and leave them the other way round."""
    with ExitStack() as stack:
        yield [stack.enter_context(manager) for manager in managers]
