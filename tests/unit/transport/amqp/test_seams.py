"""The private names of the amqp package that the transport stands on (docs/architecture.rst)."""

from __future__ import annotations

import inspect

import amqp
import pytest
from amqp import spec
from amqp.abstract_channel import AbstractChannel


@pytest.mark.parametrize(
    "name",
    [
        "_METHODS",
        "_on_start",
        "_on_secure",
        "_on_tune",
        "_on_tune_sent",
        "_on_open_ok",
        "_get_free_channel_id",
        "library_properties",
        "negotiate_capabilities",
    ],
)
def test_the_connection_has_the_name(name: str) -> None:
    assert hasattr(amqp.Connection, name)


def test_start_sends_through_send_method() -> None:
    for step in (
        amqp.Connection._on_start,
        amqp.Connection._on_tune,
        amqp.Connection._on_tune_sent,
    ):
        assert "self.send_method(" in inspect.getsource(step)


@pytest.mark.parametrize(
    "method",
    [
        "basic_qos",
        "confirm_select",
        "exchange_bind",
        "exchange_declare",
        "exchange_delete",
        "exchange_unbind",
        "flow",
        "queue_bind",
        "queue_declare",
        "queue_delete",
        "queue_purge",
        "queue_unbind",
    ],
)
def test_an_inherited_channel_method_only_sends_and_waits(method: str) -> None:
    source = inspect.getsource(getattr(amqp.Channel, method))
    assert "self.send_method(" in source
    for other in ("drain_events", "blocking_read", "frame_writer", "_pending"):
        assert other not in source


def test_a_channel_registers_with_its_connection() -> None:
    source = inspect.getsource(AbstractChannel.__init__)
    assert "connection.channels[channel_id] = self" in source
    assert "self._setup_listeners()" in source
    assert "_get_free_channel_id()" in inspect.getsource(amqp.Channel.__init__)


def test_the_method_tables_name_their_arguments() -> None:
    deliver = amqp.Channel._METHODS[spec.Basic.Deliver]
    assert (deliver.args, deliver.content) == ("sLbss", True)
    assert amqp.Connection._METHODS[spec.Connection.Close].args == "BsBB"
    assert amqp.Channel._METHODS[spec.Channel.Close].args == "BsBB"
