"""``greenconn queues`` and ``greenconn top`` over brokers without a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenconn import Connection
from tests.unit.cli.conftest import Command, Ended

Stdin = Callable[[bytes], None]

LONG = "a-queue-of-a-service." + "with-a-name-that-is-longer-than-a-line." * 3


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Any:
    """A broker of the test's own; that in memory ends with the test."""
    from greenconn.transport import memory

    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/broker.db"
        return
    yield f"memory:///{unique}"
    memory.reset(unique)


def rows(ended: Ended) -> list[dict[str, Any]]:
    """The objects that a command printed, a line each."""
    assert ended.code == 0, ended.errors
    return [json.loads(line) for line in ended.output.splitlines()]


def test_a_queue_from_its_declaration_to_its_end(command: Command, url: str) -> None:
    ended = command("queues", "declare", "mail", "--max-length", "2", "--dead-letter", "-u", url)
    assert (ended.code, ended.output) == (0, "declared mail: 0 messages, 0 consumers\n")
    assert command("publish", "mail", "a", "b", "c", "-u", url).code == 0
    assert rows(command("queues", "list", "--json", "-u", url)) == [
        {
            "queue": name,
            "kind": None,
            "durable": None,
            "ready": ready,
            "unacked": None,
            "consumers": 0,
        }
        for name, ready in (("mail", 2), ("mail.dead", 1))
    ]
    ended = command("queues", "list", "-u", url)
    assert ended.output.splitlines() == [
        "QUEUE      READY  CONSUMERS",
        "mail           2          0",
        "mail.dead      1          0",
    ]
    assert ended.errors == "2 queues\n"
    ended = command("queues", "delete", "mail", "mail.dead", "--yes", "-u", url)
    assert ended.output == "deleted mail with 2 messages\ndeleted mail.dead with 1 message\n"
    ended = command("queues", "list", "-u", url)
    assert (ended.output, ended.errors) == ("", "0 queues\n")


def test_names_and_patterns(command: Command, url: str) -> None:
    for name in ("mail.a", "mail.b", "other", LONG):
        assert command("queues", "declare", name, "--json", "-u", url).code == 0
    for given, expected in (
        (["mail.*"], ["mail.a", "mail.b"]),
        (["mail.[a]", "other"], ["mail.a", "other"]),
        ([LONG], [LONG]),
        (["nosuch*"], []),
    ):
        found = rows(command("queues", "list", *given, "--json", "-u", url))
        assert [each["queue"] for each in found] == expected
    assert LONG in command("queues", "list", "-u", url).output  # a pipe has no width


def test_bindings(command: Command, url: str) -> None:
    command("queues", "declare", "mail", "-u", url)
    ended = command(
        "queues", "bind", "mail", "events", "-k", "a.*", "-k", "b", "--type", "topic", "-u", url
    )
    assert ended.output == (
        "bound mail to events with key 'a.*'\nbound mail to events with key 'b'\n"
    )
    assert rows(
        command("queues", "bind", "mail", "events", "-k", "b", "--remove", "--json", "-u", url)
    ) == [{"queue": "mail", "exchange": "events", "key": "b", "bound": False}]
    with Connection(url) as connection, connection.channel() as channel:
        producer = connection.Producer(channel)
        for key in ("a.x", "b", "c"):
            producer.publish(key, exchange="events", routing_key=key)
        message = channel.basic_get("mail")
        assert message is not None
        assert message.payload == "a.x"
        message.ack()
        assert channel.basic_get("mail") is None


def test_deleting_asks_first(command: Command, url: str, stdin: Stdin) -> None:
    command("queues", "declare", "one", "-u", url)
    command("publish", "one", "x", "-u", url)
    stdin(b"n\n")
    ended = command("queues", "delete", "one", "-u", url)
    assert ended.code == 1
    assert "Delete one with 1 messages?" in ended.output
    stdin(b"")
    ended = command("queues", "delete", "one", "-u", url)
    assert ended.code == 2
    assert "use --yes" in ended.errors
    stdin(b"y\n")
    assert command("queues", "delete", "one", "-u", url).code == 0


def test_of_several_queues_none_goes_if_one_is_missing(command: Command, url: str) -> None:
    command("queues", "declare", "one", "-u", url)
    ended = command("queues", "delete", "one", "nosuch", "--yes", "-u", url)
    assert (ended.code, "no queue 'nosuch'" in ended.complaint) == (1, True)
    assert len(rows(command("queues", "list", "--json", "-u", url))) == 1


@pytest.mark.parametrize("name", ["list", "top"])
def test_a_queue_that_does_not_exist(command: Command, url: str, name: str) -> None:
    ended = command(*(["top"] if name == "top" else ["queues", name]), "nosuch", "-u", url)
    assert ended.code == 1
    assert "no queue 'nosuch'" in ended.complaint


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["queues"], "missing command: known"),
        (["queues", "list", "", "-u", "memory://"], "QUEUE: must not be empty"),
        (["queues", "declare", "", "-u", "memory://"], "QUEUE: must not be empty"),
        (["queues", "declare", "q", "-a", "x", "-u", "memory://"], "--argument"),
        (["queues", "declare", "q", "--max-length", "-1"], "--max-length"),
        (["queues", "declare", "q", "--type", "stack"], "'stack'"),
        (["queues", "declare", "q", "-a", "x-max-length=many", "-u", "memory://"], "x-max-length"),
        (["queues", "delete"], "QUEUE"),
        (["queues", "bind", "q"], "EXCHANGE"),
        (["top", "", "-u", "memory://"], "QUEUE: must not be empty"),
        (["top", "-i", "0"], "--interval"),
        (["top", "-n", "0"], "--count"),
        (["top", "-u", "memroy://"], "Did you mean memory://?"),
    ],
)
def test_wrong_usage(command: Command, arguments: list[str], text: str) -> None:
    ended = command(*arguments)
    assert ended.code == (1 if "x-max-length=many" in arguments else 2)
    assert text in ended.complaint


def test_top_prints_a_table_at_each_look(command: Command, url: str) -> None:
    command("queues", "declare", "mail", "-u", url)
    command("queues", "declare", LONG, "-u", url)
    command("publish", "mail", "a", "b", "-u", url)
    ended = command("top", "-n", "2", "-i", "0.1", "-u", url)
    assert (ended.code, ended.errors) == (0, "")
    one, two = ended.output.strip().split("\n\n")
    assert "2 queues, 2 ready" in one
    assert one.splitlines()[1].split() == ["QUEUE", "READY", "CONSUMERS", "LAG", "TREND"]
    titles, *lines = (line.split() for line in two.splitlines()[1:])
    assert titles == ["QUEUE", "READY", "CONSUMERS", "CHANGE/S", "LAG", "TREND"]
    assert lines[0][:5] == ["mail", "2", "0", "0.0", "-"]
    assert lines[1][0] == LONG
    assert "\x1b" not in ended.output


def test_top_prints_json(command: Command, url: str) -> None:
    command("queues", "declare", "mail", "-u", url)
    command("publish", "mail", "a", "b", "-u", url)
    found = rows(command("top", "mail", "--json", "-n", "2", "-i", "0.1", "-u", url))
    assert [each.pop("time") > 0 for each in found] == [True, True]
    shown = {
        "queue": "mail",
        "ready": 2,
        "unacked": None,
        "consumers": 0,
        "in_rate": None,
        "out_rate": None,
        "lag": None,
    }
    assert found == [{**shown, "change_rate": None}, {**shown, "change_rate": 0.0}]
