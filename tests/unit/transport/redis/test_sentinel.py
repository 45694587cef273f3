"""The choice among sentinels that name different masters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from greenconn import Connection
from greenconn.green.deadline import Deadline
from greenconn.transport.redis import SentinelTransport, SwitchWatch
from greenconn.transport.redis.errors import ServerNotReady
from greenconn.transport.redis.server import Address, Login, Server
from tests.fix_wires import until

FORMER, MASTER = 7001, 7002


class Sentinels:
    """Sentinels by their ports, and the port of the master, or the error, that each replies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *replies: int | str) -> None:
        urls = ";".join(f"sentinel://127.0.0.1:{number}" for number in range(1, 1 + len(replies)))
        self.connection = Connection(urls, transport_options={"master_name": "orders"})
        transport = self.connection.transport
        assert isinstance(transport, SentinelTransport)
        self.transport = transport
        self.replies = dict(enumerate(replies, 1))
        monkeypatch.setattr(transport, "_ask", self._ask)

    def _ask(self, sentinel: Address, name: str, deadline: Any) -> Address | str:
        reply = self.replies[sentinel.port]
        return reply if isinstance(reply, str) else Address(host="127.0.0.1", port=reply, where="")

    def named(self) -> int:
        return self.transport._resolve(Deadline(5)).port


def test_the_first_sentinel_that_names_a_master_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Sentinels(monkeypatch, "it is s_down", MASTER, FORMER).named() == MASTER


def test_a_sentinel_that_does_not_know_of_a_failover_yet_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sentinels = Sentinels(monkeypatch, FORMER, "it is s_down", MASTER)
    assert sentinels.named() == FORMER
    sentinels.transport.replaced = "127.0.0.1", FORMER
    assert sentinels.named() == MASTER


def test_a_master_that_all_name_again_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    sentinels = Sentinels(monkeypatch, FORMER, "it is s_down", FORMER)
    sentinels.transport.replaced = "127.0.0.1", FORMER
    assert sentinels.named() == FORMER


def test_a_watcher_gives_silent_sentinels_a_share_first_and_then_all_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transport = Sentinels(monkeypatch, MASTER, MASTER, MASTER).transport
    transport.client.connect_timeout = 60
    asked: list[tuple[int, float]] = []

    def open_sentinel(sentinel: Address, deadline: Deadline, *_: Any) -> Any:
        asked.append((sentinel.port, round(deadline.timeout or 0)))
        raise TimeoutError("no reply")

    monkeypatch.setattr(transport, "open_sentinel", open_sentinel)
    login = Login(credentials=lambda: (None, None))
    transport.server = Server(address=Address(), login=login, connect_timeout=60)
    watch = SwitchWatch(transport, cast("Any", SimpleNamespace(lost=None)), lambda exc: None)
    until(lambda: len(asked) >= 6)
    watch.stop()
    (one, third), (two, half), (three, rest), *later = asked
    assert (one, two, three) == (1, 2, 3)
    assert third <= 20 < half <= 30 < rest
    assert later[:3] == [(1, 60), (2, 60), (3, 60)]


def test_no_sentinel_names_a_master(monkeypatch: pytest.MonkeyPatch) -> None:
    sentinels = Sentinels(monkeypatch, "it is s_down", "it is o_down")
    with pytest.raises(ServerNotReady, match=r"127\.0\.0\.1:2: it is o_down"):
        sentinels.named()
