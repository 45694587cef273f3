"""Cursors on which new documents come: the tail of a capped collection, and change streams.

They are plain commands in a session, not pymongo's cursors, which would say things to the server when
they are collected, at any time and in any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bson import Int64

from greenconn.transport.mongodb.client import Client
from greenconn.transport.mongodb.documents import Document

__all__ = ["PATIENCE", "Reading"]

#: Seconds that the server waits for something new before it answers that there is nothing: so long
#: does the end of a connection wait for a call that is on its way.
PATIENCE: Final = 0.5


class Reading:
    """A cursor and its thread.  Its methods may switch.

    Arguments:
        client: the servers.
        collection: the name of the collection.
    """

    def __init__(self, client: Client, collection: str) -> None:
        self._client = client
        self._collection = collection
        # It waits in its call nearly all the time: others are not to wait for it.
        self._aside = client.aside(1)
        self._session: Any = None
        self._id = 0

    @property
    def is_alive(self) -> bool:
        """Whether more may come."""
        return self._id != 0

    def open(self, command: Mapping[str, Any]) -> list[Document]:
        """Open it with *command*; return what there is already."""
        self._session = self._client.session()
        return self._run(command, "firstBatch")

    def more(self) -> list[Document]:
        """Return what is new, after :data:`PATIENCE` at most."""
        command = {
            "getMore": Int64(self._id),
            "collection": self._collection,
            "maxTimeMS": int(PATIENCE * 1000),
        }
        return self._run(command, "nextBatch")

    def _run(self, command: Mapping[str, Any], batch: str) -> list[Document]:
        self._id = 0  # if it fails, there is no cursor
        answer = self._client.call_in(
            self._aside, self._client.database.command, dict(command), session=self._session
        )
        cursor = answer["cursor"]
        self._id = int(cursor["id"])
        found: list[Document] = cursor[batch]
        return found

    def close(self) -> None:
        """Close the cursor and end its thread."""
        try:
            if self._id:
                number, self._id = self._id, 0
                command = {"killCursors": self._collection, "cursors": [Int64(number)]}
                self._client.call_in(self._aside, self._client.database.command, command)
        finally:
            session, self._session = self._session, None
            if session is not None:
                session.end_session()
            self._aside.close()
