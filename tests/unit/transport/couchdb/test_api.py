"""Answers that no CouchDB gives, and its refusals: each is one error that says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient
from greenconn.transport.couchdb.api import (
    ChangesFeed,
    CouchApi,
    LinkLost,
    LoginRefused,
    NoSuchDatabase,
    NotCouch,
    Range,
    ServerRefuses,
)
from tests.fix_peer import PeerFactory

WAIT = 30.0


class Server:
    """Gives the answers that a test says, in their order; the last one again and again."""

    def __init__(self, peer: PeerFactory) -> None:
        self.answers: list[tuple[int, str]] = []
        self.peer = peer(self._serve)
        self.web = HttpClient("127.0.0.1", self.peer.port)
        self.api = CouchApi(self.web, "db", "couchdb://:**@here/db", WAIT)

    def _serve(self, client: socket.socket) -> None:
        while client.recv(65536):
            status, text = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n"
            client.sendall((head + text).encode())

    def says(self, *answers: tuple[int, str]) -> CouchApi:
        """Answer with these."""
        self.answers = list(answers)
        return self.api


@pytest.fixture
def server(peer: PeerFactory) -> Iterator[Server]:
    server = Server(peer)
    yield server
    server.web.close()
    gevent.sleep(0)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([(200, "<html>")], NotCouch),
        ([(200, "{}")], NotCouch),
        ([(200, "[]")], NotCouch),
        ([(401, '{"error":"unauthorized"}')], LoginRefused),
        ([(403, '{"error":"forbidden"}')], LoginRefused),
        ([(500, "<html>")], LinkLost),
        ([(404, "{}"), (403, '{"error":"forbidden"}')], NoSuchDatabase),
        ([(404, "{}"), (401, '{"error":"unauthorized"}')], NoSuchDatabase),
        ([(404, "{}"), (400, '{"error":"illegal_database_name"}')], NoSuchDatabase),
        ([(404, "{}"), (503, "")], LinkLost),
    ],
)
def test_what_opening_finds(server: Server, answers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="couchdb://:\\*\\*@here/db"):
        server.says(*answers).open(Deadline(WAIT))


def test_a_database_that_somebody_else_made(server: Server) -> None:
    seq = '{"update_seq": [5, "x"]}'
    api = server.says((404, "{}"), (412, '{"error":"file_exists"}'), (200, seq))
    assert api.open(Deadline(WAIT)) == '[5,"x"]'


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (200, "{}", NotCouch),
        (200, "7", NotCouch),
        (200, "<html>", NotCouch),
        (404, '{"error":"not_found","reason":"no_db_file"}', LinkLost),
        (401, "{}", LinkLost),
        (429, "{}", LinkLost),
        (413, '{"error":"too_large"}', ServerRefuses),
    ],
)
def test_answers_to_questions(server: Server, status: int, text: str, error: Any) -> None:
    api = server.says((status, text))
    with pytest.raises(error):
        api.rows(Range("a", "b"))
    with pytest.raises(error):
        api.read(["a"])
    with pytest.raises(error):
        api.write([{"_id": "a"}])


def test_a_result_that_is_missing(server: Server) -> None:
    with pytest.raises(NotCouch, match="no result for document"):
        server.says((201, '[{"id": "a", "rev": "1-x"}, 7]')).write([{"_id": "a"}, {"_id": "b"}])


@pytest.mark.parametrize(
    "line", ["{}", "nonsense", "[]", '{"seq": 1, "id": "a", "changes": 5}', '"text"']
)
def test_a_change_that_cannot_be_read_ends_the_feed(server: Server, line: str) -> None:
    good = '{"seq": 1, "id": "a", "changes": [{"rev": "1-x"}]}'
    api = server.says((200, f"{good}\n\n{line}\n"))
    changes: list[Any] = []
    lost: list[BaseException] = []
    feed = ChangesFeed(api, 1.0, lambda *change: changes.append(change), lambda: None, lost.append)
    feed.start("0")
    deadline = Deadline(WAIT)
    while not lost and not deadline.has_ended:
        gevent.sleep(0.01)
    feed.stop()
    assert changes == [("a", "1-x", False)]
    assert isinstance(lost[0], NotCouch)
