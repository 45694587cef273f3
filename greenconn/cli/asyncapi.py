"""``greenconn asyncapi``: a document of AsyncAPI 3.0 about what an application consumes."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import unwrap
from typing import TYPE_CHECKING, Any, Final

import click

from greenconn.common import Broadcast
from greenconn.entity import Exchange, Queue
from greenconn.schemas import item_of, json_schema_of, schema_of
from greenconn.service.periodic import spawn_periodic
from greenconn.service.rpc import spawn_server

if TYPE_CHECKING:
    from greenconn.service.app import App

    #: A part of the document.
    Part = dict[str, Any]

VERSION: Final = "3.0.0"
#: Version of the bindings of AMQP.
BINDINGS: Final = "0.3.0"
JSON: Final = "application/json"
_SCHEMAS: Final = "#/components/schemas/"


@click.command("asyncapi")
@click.argument("application", metavar="MODULE[:APP]")
@click.option("--title", help="Title of the document.  [default: MODULE:APP]")
@click.option(
    "--version", "version", default="1.0.0", show_default=True, help="Version of the application."
)
def asyncapi(application: str, title: str | None, version: str) -> None:
    """Print an AsyncAPI document of the consumers and RPC servers that APP declares.

    APP is a greenconn.App in MODULE, which is imported.  The document is JSON, which is YAML, too.

    \b
    Example:
      greenconn asyncapi shop.tasks > asyncapi.json
      greenconn asyncapi shop.tasks:app --title Shop --version 2.1.0
    """
    from greenconn.service.program import load_app

    document = describe(load_app(application), title or application, version)
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def describe(app: App, title: str, version: str) -> Part:
    """Return the document of *app*, as JSON has it.  Never switches."""
    return _Document(app).as_dict(title, version)


class _Document:
    """The parts of a document, as the declarations of an application add them.

    Arguments:
        app: the application.
    """

    def __init__(self, app: App) -> None:
        self._channels: dict[str, Part] = {}
        #: Kind and name of a channel -> its key.
        self._keys: dict[tuple[str, str], str] = {}
        self._operations: dict[str, Part] = {}
        self._messages: dict[str, Part] = {}
        self._schemas: Part = {}
        self._servers: dict[str, Part] = {}
        connection = app.connection
        if connection is not None:
            transport = str(connection.transport_cls)
            port = f":{connection.port}" if connection.port else ""
            host = f"{connection.hostname or 'localhost'}{port}"
            self._servers["default"] = {"host": host, "protocol": transport.partition("+")[0]}
        for each in app._registrations:
            if each.spawn is not spawn_periodic:
                self._add(each.queue, each.function, each.options, each.spawn is spawn_server)

    def as_dict(self, title: str, version: str) -> Part:
        """Return the whole of it."""
        parts = {
            "asyncapi": VERSION,
            "info": {"title": title, "version": version},
            "servers": self._servers,
            "defaultContentType": JSON,
            "channels": self._channels,
            "operations": self._operations,
            "components": {"messages": self._messages, "schemas": self._schemas},
        }
        return {name: part for name, part in parts.items() if part}

    def _add(
        self, queues: Any, function: Callable[..., Any], options: Mapping[str, Any], replies: bool
    ) -> None:
        """Add one handler."""
        schema = options.get("schema")
        if schema is None:
            schema = schema_of(function)
            if schema is not None and options.get("batch_size") is not None:
                schema = item_of(schema)
        name = getattr(function, "__name__", type(function).__name__)
        text = (getattr(function, "__doc__", None) or "").strip().partition("\n")[0]
        for queue in [queues] if isinstance(queues, (str, Queue)) else queues:
            channel = self._channel_of(queue)
            message = self._message(f"{channel}.message", schema)
            self._use(channel, message)
            operation: Part = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{channel}"},
                **({"summary": text} if text else {}),
                "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
            }
            if isinstance(queue, Queue) and not isinstance(queue, Broadcast):
                self._add_exchange(queue, message)
            key = _unused(_key(f"{name}.{channel}"), self._operations)
            if replies:
                operation["reply"] = self._reply(key, function)
            self._operations[key] = operation

    def _channel_of(self, queue: str | Queue) -> str:
        """Return the key of the channel of a queue; that of a broadcast is its exchange."""
        if isinstance(queue, str):
            return self._channel(queue, {"is": "queue", "queue": {"name": queue, "durable": True}})
        if isinstance(queue, Broadcast) and queue.exchange is not None:
            return self._channel(queue.exchange.name or "", _exchange_binding(queue.exchange))
        about = {
            "name": queue.name,
            "durable": queue.durable,
            "exclusive": queue.exclusive,
            "autoDelete": queue.auto_delete,
        }
        return self._channel(queue.name, {"is": "queue", "queue": about})

    def _add_exchange(self, queue: Queue, message: str) -> None:
        """Add the exchanges by which messages reach a queue, for those who publish."""
        bound = [(queue.exchange, queue.routing_key)]
        bound += [(each.exchange, each.routing_key) for each in queue.bindings]
        for exchange, key in bound:
            if isinstance(exchange, Exchange) and exchange.name:
                name = f"{exchange.name}:{key}" if key else exchange.name
                channel = self._channel(name, _exchange_binding(exchange), key or exchange.name)
                self._use(channel, message)

    def _channel(self, name: str, binding: Part, address: str | None = None) -> str:
        """Return the key of a channel, which is added once."""
        place = (binding["is"], name)
        key = self._keys.get(place)
        if key is None:
            key = self._keys[place] = _unused(_key(name) or "nameless", self._channels)
            self._channels[key] = {
                "address": address or name or None,
                "messages": {},
                "bindings": {"amqp": {**binding, "bindingVersion": BINDINGS}},
            }
        return key

    def _use(self, channel: str, message: str) -> None:
        """Note that a message goes through a channel."""
        self._channels[channel]["messages"][message] = {"$ref": f"#/components/messages/{message}"}

    def _reply(self, key: str, function: Callable[..., Any]) -> Part:
        """Return what a server answers, where the caller waits for it."""
        message = self._message(f"{key}.reply", _returned_by(function))
        channel = f"{key}.reply"
        self._channels[channel] = {"address": None, "messages": {}}
        self._use(channel, message)
        return {
            "address": {"location": "$message.header#/reply_to"},
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
        }

    def _message(self, key: str, schema: Any) -> str:
        """Add a message with its schema, and return its key; one of the same type is the same."""
        payload = self._payload(schema)
        if payload is None:
            self._messages.setdefault(key, {"contentType": JSON})
            return key
        key = _key(schema.__name__) if isinstance(schema, type) else key
        message = {"name": key, "contentType": JSON, "payload": payload}
        if self._messages.get(key, message) != message:
            key = _unused(key, self._messages)
        self._messages[key] = {**message, "name": key}
        return key

    def _payload(self, schema: Any) -> Part | None:
        """Return the JSON schema of a type, whose parts are among the schemas; None: there is none."""
        if schema is None or schema is object or schema is Any:
            return None
        payload, parts = json_schema_of(schema, _SCHEMAS)
        self._schemas.update(parts)
        return payload


def _exchange_binding(exchange: Exchange) -> Part:
    about = {
        "name": exchange.name,
        "type": exchange.type,
        "durable": exchange.durable,
        "autoDelete": exchange.auto_delete,
    }
    return {"is": "routingKey", "exchange": about}


def _returned_by(function: Callable[..., Any]) -> Any:
    """Return the type that a function says it returns; None: it says none that JSON has."""
    with suppress(Exception):  # of types that are imported for type checkers only
        found = typing.get_type_hints(unwrap(function)).get("return")
        json_schema_of(found, _SCHEMAS)
        return found
    return None


def _key(text: str) -> str:
    """Return *text* as a key that references can have."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)


def _unused(key: str, taken: Mapping[str, object]) -> str:
    """Return *key*, with a number where it is taken."""
    number, found = 2, key
    while found in taken:
        found, number = f"{key}_{number}", number + 1
    return found
