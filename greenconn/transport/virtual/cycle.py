"""Round robin over resources."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class FairCycle(Generic[T]):
    """Asks resources in turn until one has something (kombu's).

    Arguments:
        fun: called with a resource and what ``get`` was given.
        resources: a list, which may change meanwhile.
        predicate: the exception that means that a resource has nothing.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        resources: MutableSequence[T],
        predicate: type[Exception] = Exception,
    ) -> None:
        self.fun = fun
        self.resources = resources
        self.predicate = predicate
        self.pos = 0

    def _next(self) -> T:
        if not self.resources:
            self.pos = 0
            raise self.predicate()
        if self.pos >= len(self.resources):
            self.pos = 0
        self.pos += 1
        return self.resources[self.pos - 1]

    def get(self, callback: Callable[..., Any], **kwargs: Any) -> Any:
        """Return what the first resource that has something gives.  May switch, if *fun* does.

        Raises:
            Exception: *predicate*, when none has anything.
        """
        tries = len(self.resources)
        while True:
            resource = self._next()
            tries -= 1
            try:
                return self.fun(resource, callback, **kwargs)
            except self.predicate:
                if tries <= 0:
                    raise

    def close(self) -> None:
        """Nothing to do (kombu's name)."""

    def __repr__(self) -> str:
        return f"<FairCycle: {self.pos}/{len(self.resources)} {self.resources}>"
