"""The broker in Django's settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("django")

from greenconn import defaults
from greenconn.contrib.django import configure, connection
from greenconn.defaults import default_connection

PARTS = {
    "BROKER_HOST": "one",
    "BROKER_PORT": 1234,
    "BROKER_USER": "me",
    "BROKER_PASSWORD": "se/cret",
    "BROKER_VHOST": "/mine",
}


def made(**settings: Any) -> str:
    return connection(SimpleNamespace(**settings)).as_uri(include_password=True)


def test_separate_settings() -> None:
    assert made(**PARTS) == "amqp://me:se%2Fcret@one:1234//mine"
    assert made() == "amqp://guest:guest@localhost:5672//"
    assert made(BROKER_USER="me", BROKER_TRANSPORT="memory") == "memory://me@localhost//"


def test_a_url() -> None:
    assert made(BROKER_URL="redis://here:99/3") == "redis://here:99/3"
    found = connection(SimpleNamespace(BROKER_URL="amqp://h//?heartbeat=7&confirm_publish=1"))
    assert found.heartbeat == 7
    assert found.transport_options == {"confirm_publish": True}


def test_separate_settings_win_over_their_part_of_the_url() -> None:
    url = "amqp://x:y@h:7/z?heartbeat=7&connect_timeout=3"
    assert made(BROKER_URL=url, **PARTS) == "amqp://me:se%2Fcret@one:1234//mine"
    assert made(BROKER_URL=url, BROKER_PASSWORD="other") == "amqp://x:other@h:7/z"
    found = connection(SimpleNamespace(BROKER_URL=url, BROKER_HEARTBEAT=9))
    assert (found.heartbeat, found.connect_timeout, found.virtual_host) == (9, 3, "z")


def test_settings_fill_what_a_list_of_urls_leaves_blank() -> None:
    found = connection(
        SimpleNamespace(BROKER_URL="amqp://one;amqp://a:b@two", BROKER_USER="me", BROKER_HOST="x")
    )
    assert found.alt == ["amqp://one", "amqp://a:b@two"]
    assert (found.hostname, found.userid) == ("one", "me")
    found.maybe_switch_next()
    assert (found.hostname, found.userid) == ("two", "a")


def test_further_settings_and_arguments() -> None:
    settings = SimpleNamespace(
        BROKER_USE_SSL=True,
        BROKER_CONNECTION_TIMEOUT=3,
        BROKER_LOGIN_METHOD="PLAIN",
        BROKER_TRANSPORT_OPTIONS={"confirm_publish": True},
    )
    found = connection(settings, connect_timeout=4)
    assert found.ssl is True
    assert found.connect_timeout == 4
    assert found.login_method == "PLAIN"
    assert found.transport_options == {"confirm_publish": True}


def test_the_default_connections_lead_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENCONN_URL", "memory:///from-the-environment")
    defaults.reset()
    try:
        configure(SimpleNamespace())
        assert default_connection("publish").virtual_host == "from-the-environment"
        configure(SimpleNamespace(**PARTS))
        assert default_connection("publish").as_uri() == "amqp://me:**@one:1234//mine"
        configure(SimpleNamespace(BROKER_URL="memory:///there"))
        assert default_connection("consume").virtual_host == "there"
    finally:
        defaults.reset()
