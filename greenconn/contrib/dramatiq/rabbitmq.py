"""The broker with the arguments and attributes of Dramatiq's broker for RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dramatiq import Middleware

from greenconn.connection import Connection
from greenconn.contrib.dramatiq.broker import GreenconnBroker, NotAccepted
from greenconn.contrib.dramatiq.pika import (
    PARAMETERS,
    PikaChannel,
    PikaConnection,
    pika_errors,
    split_url,
    url_arguments,
)
from greenconn.entity import Queue
from greenconn.exceptions import RecoverableConnectionError

__all__ = ["RabbitmqBroker"]


class RabbitmqBroker(GreenconnBroker):
    """A :class:`GreenconnBroker` that takes the place of Dramatiq's ``RabbitmqBroker``.

    It declares the same classic queues, unless *quorum* is true.

    Arguments:
        url: the URL of the broker, or several URLs: a list, or text separated by ``;``.
        confirm_delivery: accepted without effect: ``send`` always waits until RabbitMQ has the message.
        middleware: the list of middleware, as in ``dramatiq.Broker``.
        max_priority: the maximum priority of the queues, from 1 to 255; None for no priorities.
        parameters: in place of *url*, a list of dicts of parameters of ``pika.ConnectionParameters``.
        quorum: whether to declare quorum queues.
        kwargs: in place of *url*, the parameters of ``pika.ConnectionParameters``; and further arguments
            of :class:`GreenconnBroker`.

    Raises:
        RuntimeError: more than one of *url*, *parameters* and parameters of pika was given.
        TypeError: there is no such argument.
        ValueError: *max_priority* is out of range.
    """

    _connection_class = PikaConnection

    if TYPE_CHECKING:
        connection: PikaConnection
        channel: PikaChannel  # type: ignore[assignment]  # it has pika's arguments

    def __init__(
        self,
        *,
        confirm_delivery: bool = True,
        url: str | Iterable[str] | None = None,
        middleware: list[Middleware] | None = None,
        max_priority: int | None = None,
        parameters: Iterable[Mapping[str, Any]] | None = None,
        quorum: bool = False,
        **kwargs: Any,
    ) -> None:
        of_pika = {name: kwargs.pop(name) for name in PARAMETERS & kwargs.keys()}
        if (url is not None) + (parameters is not None) + bool(of_pika) > 1:
            raise RuntimeError("only one of url, parameters and pika's parameters must be given")
        if url is None:
            urls, arguments = url_arguments([of_pika] if parameters is None else parameters)
        else:
            urls, arguments = [], {}
            for each in url.split(";") if isinstance(url, str) else url:
                address, options = split_url(each)
                urls.append(address)
                arguments.update(options)
        options = {**arguments.pop("transport_options", {}), **kwargs.pop("transport_options", {})}
        if options:
            arguments["transport_options"] = options
        super().__init__(
            urls,
            middleware=middleware,
            max_priority=max_priority,
            quorum=quorum,
            **{**arguments, **kwargs},
        )
        self.confirm_delivery = confirm_delivery

    @property
    def state(self) -> SimpleNamespace:
        """An object with the ``connection`` and the ``channel`` of this thread, if they are open."""
        state = SimpleNamespace()
        if self.connection.connected:
            state.connection = self.connection
        channel = self._channels.get().opened
        if channel is not None:
            state.channel = channel
        return state

    def _open_channel(self, connection: Connection) -> Any:
        return PikaChannel(connection.channel())

    def _ensure_queue(self, name: str, connection: Connection) -> Queue:
        # Methods of subclasses that declare a queue may use self.channel, which is lost with its
        # connection, or raise errors of pika: they are called once more, as in Dramatiq.
        for is_last in (False, True):
            try:
                return super()._ensure_queue(name, connection)
            except (RecoverableConnectionError, *pika_errors("AMQPConnectionError")) as exc:
                if is_last or connection.session.is_closed:
                    raise NotAccepted(str(exc)) from exc
                del self.channel
        raise AssertionError("unreachable")
