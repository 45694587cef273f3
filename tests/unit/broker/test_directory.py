"""Declaring queues that several processes share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from greenconn.broker.directory import Directory
from greenconn.exceptions import NotFound, ResourceLocked
from greenconn.transport.virtual.declaration import Declaration
from tests.unit.broker.conftest import Opener
from tests.unit.broker.test_publishing import channel_to


class Shelf(Directory):
    """A directory whose broker has what somebody else declared a moment ago."""

    def __init__(self, quicker: Declaration | None = None) -> None:
        super().__init__()
        link: Any = SimpleNamespace(client=None, owner="us")
        self._link = link
        self.quicker = quicker

    def find(self, name: str) -> Declaration | None:
        return None

    def _make(self, name: str, declared: Declaration) -> Declaration:
        assert name in self.own  # whatever ends this call, the queue may have been made
        return self.quicker or declared

    @property
    def own(self) -> set[str]:
        return self._own


def test_no_name_asks_for_the_queue_that_was_declared_last(connect: Opener) -> None:
    channel = channel_to(connect)
    with pytest.raises(NotFound):
        channel.queue_declare("", passive=True)
    channel = channel_to(connect)
    channel.queue_declare("q")
    assert channel.queue_declare("", passive=True).queue == "q"


def test_exclusive_queue_is_deleted_with_its_link() -> None:
    shelf = Shelf()
    shelf.declare("q", Declaration(owner="us"))
    assert shelf.own == {"q"}


@pytest.mark.parametrize("owner", [None, "them"])
def test_queue_that_another_link_declared_first_is_left_to_it(owner: str | None) -> None:
    shelf = Shelf(Declaration(owner=owner))
    with pytest.raises(ResourceLocked):
        shelf.declare("q", Declaration(owner="us"))
    assert not shelf.own
