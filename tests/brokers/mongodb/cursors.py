"""Cursors: of a finished answer, at the tail of a collection, and of changes to come."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from mongomock.aggregate import process_pipeline
from mongomock.filtering import filter_applies

BATCH = 101

Document = dict[str, Any]


class Cursor:
    """Documents that were found, taken in batches.

    Attributes:
        namespace: database and collection.
        waits: whether ``getMore`` waits for more (``awaitData``).
    """

    waits = False

    def __init__(self, namespace: str, documents: Iterable[Document]) -> None:
        self.namespace = namespace
        self.documents = deque(documents)

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come."""
        return not self.documents

    def take(self, size: int) -> list[Document]:
        """Take at most *size* of those that are there."""
        return [self.documents.popleft() for _ in range(min(size, len(self.documents)))]

    def inserted(self, namespace: str, document: Document) -> None:
        """A document was inserted somewhere."""

    def changed(self, namespace: str, event: Document) -> None:
        """Something was changed somewhere."""


class TailCursor(Cursor):
    """The end of a capped collection: gives what is inserted later, too."""

    def __init__(
        self, namespace: str, documents: Iterable[Document], filter: Document, *, waits: bool
    ) -> None:
        super().__init__(namespace, documents)
        self._filter = filter
        self.waits = waits

    @property
    def is_over(self) -> bool:
        return False

    def inserted(self, namespace: str, document: Document) -> None:
        if namespace == self.namespace and filter_applies(self._filter, document):
            self.documents.append(document)


class ChangeCursor(Cursor):
    """A change stream: events from its opening on, through a pipeline.

    Arguments:
        namespace: the collection that is watched.
        pipeline: the stages behind ``$changeStream``.
    """

    waits = True

    def __init__(self, namespace: str, pipeline: list[Document]) -> None:
        super().__init__(namespace, ())
        self._pipeline = pipeline

    @property
    def is_over(self) -> bool:
        return False

    def changed(self, namespace: str, event: Document) -> None:
        if namespace == self.namespace:
            self.documents.extend(process_pipeline([event], None, self._pipeline, None))


class Cursors:
    """The open cursors of the server, by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, Cursor] = {}

    @property
    def are_changes_watched(self) -> bool:
        """Whether somebody looks at changes."""
        return any(isinstance(each, ChangeCursor) for each in self._open.values())

    def open(self, cursor: Cursor, size: int | None, *, single: bool = False) -> Document:
        """The answer with the first batch; the cursor is kept if there is more."""
        size = BATCH if size is None else size
        batch = cursor.take(size)
        number = 0
        if not single and not cursor.is_over:
            number = next(self._numbers)
            self._open[number] = cursor
        return {"cursor": {"id": number, "ns": cursor.namespace, "firstBatch": batch}, "ok": 1.0}

    def get(self, number: int) -> Cursor | None:
        """The cursor of that number."""
        return self._open.get(number)

    def more(self, number: int, cursor: Cursor, size: int | None) -> Document:
        """The answer with the next batch."""
        batch = cursor.take(size or BATCH)
        if cursor.is_over:
            self._open.pop(number, None)
            number = 0
        return {"cursor": {"id": number, "ns": cursor.namespace, "nextBatch": batch}, "ok": 1.0}

    def kill(self, number: int) -> bool:
        """End a cursor; whether there was one."""
        return self._open.pop(number, None) is not None

    def tell(self, call: Callable[[Cursor], None]) -> None:
        """Call *call* with each cursor."""
        for cursor in self._open.values():
            call(cursor)
