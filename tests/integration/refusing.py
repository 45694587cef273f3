"""Lets each store refuse the dead letters that are for one queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from greenconn.transport import mongodb
from greenconn.wire.resp import pack
from tests.integration.contract import Side

#: Arguments of a queue that takes one message.
FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


@contextmanager
def refusing(side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """As long as it lasts, no dead letter of *channel* can be stored in *queue*."""
    end = _REFUSALS.get(side.kind, _full)(side, channel, queue, patch)
    try:
        yield
    finally:
        end()


def _full(side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch) -> Callable[[], object]:
    """The queue is bounded, and full."""
    side.send(channel, "it is full", "", queue)
    return lambda: channel.queue_purge(queue)


def _beanstalk(
    side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch
) -> Callable[[], object]:
    """The server takes no jobs as large as that."""
    server = channel.connection.store._server
    limit, server.longest_job = server.longest_job, 10
    return lambda: setattr(server, "longest_job", limit)


def _mongodb(
    side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch
) -> Callable[[], object]:
    """The server takes no documents as large as that."""
    patch.setattr(mongodb, "LARGEST", 10)
    return patch.undo


def _sqs(side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch) -> Callable[[], object]:
    """SQS takes no messages as large as that."""
    store = channel.connection.store
    patch.setattr(store, "options", store.options.replace(max_message_size=10))
    return patch.undo


def _couchdb(
    side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch
) -> Callable[[], object]:
    """The database has a rule that forbids such documents."""
    api = channel.connection.store._api
    write = api.write

    def ruled(docs: Sequence[Any], **options: Any) -> Any:
        if any(doc.get("queue") == queue for doc in docs):
            return [{"id": doc["_id"], "error": "forbidden", "reason": "a rule"} for doc in docs]
        return write(docs, **options)

    patch.setattr(api, "write", ruled)
    return patch.undo


def _folder(
    side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch
) -> Callable[[], object]:
    """The folder in which new files begin is none."""
    new = channel.connection.store._folder(queue) / "new"
    new.rmdir()
    new.touch()

    def mend() -> None:
        new.unlink()
        new.mkdir()

    return mend


def _redis(side: Side, channel: Any, queue: str, patch: pytest.MonkeyPatch) -> Callable[[], object]:
    """The key of the queue is something else than a list."""
    commands = channel.connection.placement.of(queue).commands
    key = commands.keys.plain(queue)
    commands.call(pack("SET", key, "no list"))
    return lambda: commands.call(pack("DEL", key))


_REFUSALS = {
    "beanstalk": _beanstalk,
    "couchdb": _couchdb,
    "folder": _folder,
    "mongodb": _mongodb,
    "redis": _redis,
    "sqs": _sqs,
}
