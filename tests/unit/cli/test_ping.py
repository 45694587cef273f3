"""``greenconn ping`` over a broker without a server."""

from __future__ import annotations

import json

import pytest

from greenconn.cli.options import URL_VARIABLE
from tests.unit.cli.conftest import Command


def test_the_result_as_json(command: Command, url: str) -> None:
    ended = command("ping", "--json", "--count", "3", url)
    assert (ended.code, ended.errors) == (0, "")
    found = json.loads(ended.output)
    assert found.pop("url").startswith("memory://")
    assert found.pop("broker").startswith("memory")
    assert found.pop("count") == 3
    assert 0 <= found["best_ms"] <= found["median_ms"] <= found["worst_ms"]
    assert found.keys() == {"open_ms", "best_ms", "median_ms", "worst_ms"}


@pytest.mark.parametrize("name", ["ping", "doctor"])
def test_the_url_is_an_argument_or_an_option(
    command: Command, url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "amqp://127.0.0.1:1//")
    for given in ([url], ["--url", url], ["-u", url]):
        ended = command(name, *given)
        assert ended.code == 0
        assert url.removeprefix("memory://") in ended.output
    ended = command(name, url, "--url", url)
    assert ended.code == 2
    assert "the URL must be given once: as an argument or with --url" in ended.complaint
    monkeypatch.setenv(URL_VARIABLE, url)
    assert command(name).code == 0
