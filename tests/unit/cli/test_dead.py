"""``greenconn dead`` over a broker without a server."""

from __future__ import annotations

import pytest

import greenconn
from greenconn import Connection
from tests.unit.cli.conftest import Command


@pytest.mark.parametrize("action", [("look",), ("count",), ("replay",), ("purge", "--yes")])
def test_a_queue_that_does_not_exist(command: Command, url: str, action: tuple[str, ...]) -> None:
    name, *options = action
    ended = command("dead", name, "nosuch", *options, "-u", url)
    assert (ended.code, ended.output) == (1, "")
    assert "no queue 'nosuch'" in ended.complaint
    with Connection(url) as connection:
        connection.default_channel.queue_declare("nosuch")
    ended = command("dead", name, "nosuch", *options, "-u", url)
    assert ended.code == 0  # no message has failed yet
    ended = command("dead", name, "nosuch", *options, "--name", "elsewhere", "-u", url)
    assert ended.code == 1
    assert "no queue 'elsewhere'" in ended.complaint


def test_dead_letters_of_a_queue_that_is_gone(command: Command, url: str) -> None:
    with Connection(url) as connection:
        greenconn.publish("mail.dead", "kept", connection=connection, declare=True)
    assert command("dead", "count", "mail", "-u", url).output == "1\n"


def test_a_queue_that_another_connection_has_for_itself(command: Command, url: str) -> None:
    with Connection(url) as connection:
        connection.default_channel.queue_declare("mine", exclusive=True)
        assert command("dead", "count", "mine", "-u", url).output == "0\n"
