"""Producers and consumers as carrot's programs know them (kombu.compat), and stand-ins.

A stand-in for kombu or carrot lets code that cannot be edited import greenconn.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from itertools import count, islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from greenconn import messaging
from greenconn._version import version_info_t
from greenconn.checks import tolerate_keywords
from greenconn.entity import Exchange, Queue

if TYPE_CHECKING:
    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.connection import Connection


__all__ = [
    "Consumer",
    "ConsumerSet",
    "ImportAlias",
    "Publisher",
    "entry_to_queue",
    "install_as_carrot",
    "install_as_kombu",
]

#: The version of kombu whose API ours is.
KOMBU_VERSION: Final = version_info_t(5, 7, 0)

entry_to_queue = Queue.from_dict


def _iterconsume(
    connection: Connection,
    consumer: messaging.Consumer,
    no_ack: bool | None = False,
    limit: int | None = None,
) -> Iterator[Any]:
    """Yield once for each event that was handled, *limit* times at most (None, 0: for ever)."""
    consumer.consume(no_ack=no_ack)
    for _ in islice(count(), limit or None):
        yield connection.drain_events()


class Publisher(messaging.Producer):
    """A producer with an exchange of its own, whose attributes may be those of the class.

    Arguments:
        connection: a connection or a channel.
        exchange: its name, or an Exchange.
        routing_key: of messages that say none.
        exchange_type: of the exchange, if it is given by name.
        durable: whether the exchange survives the broker.
        auto_delete: whether it goes with its last queue.
        channel: instead of *connection*.
        kwargs: of :class:`greenconn.Producer`.
    """

    exchange: Any = ""
    exchange_type = "direct"
    routing_key: str = ""
    durable = True
    auto_delete = False

    _closed = False

    def __init__(
        self,
        connection: Connection,
        exchange: Exchange | str | None = None,
        routing_key: str | None = None,
        exchange_type: str | None = None,
        durable: bool | None = None,
        auto_delete: bool | None = None,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> None:
        exchange = exchange or self.exchange
        self.exchange_type = exchange_type or self.exchange_type
        self.routing_key = routing_key or self.routing_key
        if durable is not None:
            self.durable = durable
        if auto_delete is not None:
            self.auto_delete = auto_delete
        if not isinstance(exchange, Exchange):
            exchange = Exchange(
                exchange,
                type=self.exchange_type,
                durable=self.durable,
                auto_delete=self.auto_delete,
            )
        super().__init__(channel or connection, exchange, self.routing_key, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Publish: see :meth:`greenconn.Producer.publish`."""
        return self.publish(*args, **kwargs)

    def close(self) -> None:
        """Let the channel go."""
        super().close()
        self._closed = True

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    @property
    def backend(self) -> Any:
        """The channel."""
        return self.channel


class FetchIterator:
    """Iterates over what ``fetch()`` gives."""

    def fetch(self) -> Any:
        """Return the next message, or None if the queue is empty.  May switch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return self.iterqueue(infinite=True)

    def iterqueue(self, limit: int | None = None, infinite: bool = False) -> Iterator[Any]:
        """Yield messages as :meth:`fetch` gives them.  May switch.

        Arguments:
            limit: messages at most; None is without limit.
            infinite: go on when the queue is empty, with None.
        """
        for _ in islice(count(), limit or None):
            message = self.fetch()
            if message is None and not infinite:
                return
            yield message


class Consumer(FetchIterator, messaging.Consumer):
    """A consumer of one queue on a channel of its own; attributes may be those of the class.

    Arguments:
        connection: where its channel is opened.
        queue: the name of the queue.
        exchange: the name of the exchange that the queue is bound to.
        routing_key: of the binding.
        exchange_type: of the exchange.
        durable: whether queue and exchange survive the broker.
        exclusive: whether the queue is for this connection alone.
        auto_delete: whether queue and exchange go when they are not used any more.
        kwargs: of :class:`greenconn.Consumer`.
    """

    queue = ""
    exchange = ""
    routing_key = ""
    exchange_type = "direct"
    durable = True
    exclusive = False
    auto_delete = False

    _closed = False

    def __init__(
        self,
        connection: Connection,
        queue: str | None = None,
        exchange: str | None = None,
        routing_key: str | None = None,
        exchange_type: str | None = None,
        durable: bool | None = None,
        exclusive: bool | None = None,
        auto_delete: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.queue = queue or self.queue
        self.exchange = exchange or self.exchange
        self.routing_key = routing_key or self.routing_key
        self.exchange_type = exchange_type or self.exchange_type
        if durable is not None:
            self.durable = durable
        if exclusive is not None:
            self.exclusive = exclusive
        if auto_delete is not None:
            self.auto_delete = auto_delete
        self.backend: ChannelOrConnection = connection.channel()
        super().__init__(self.backend, self._make_queue(), **kwargs)

    def _make_queue(self) -> Queue:
        exchange = Exchange(
            self.exchange,
            type=self.exchange_type,
            durable=self.durable,
            auto_delete=self.auto_delete,
        )
        return Queue(
            self.queue,
            exchange=exchange,
            routing_key=self.routing_key,
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
        )

    def revive(self, channel: ChannelOrConnection) -> None:
        """Go on with another channel."""
        self.backend = channel
        super().revive(channel)

    def close(self) -> None:
        """Cancel, and close the channel."""
        self.cancel()
        self.backend.close()
        self._closed = True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def fetch(self, no_ack: bool | None = None, enable_callbacks: bool = False) -> Any:
        """Return the next message, or None if the queue is empty.

        Arguments:
            no_ack: the message needs no ack; None is what the consumer says.
            enable_callbacks: call the callbacks as well.
        """
        if enable_callbacks:
            self.check_callbacks()  # before it takes a message
        message = self.queues[0].get(self.no_ack if no_ack is None else no_ack)
        if message and enable_callbacks:
            self.receive(message.payload, message)
        return message

    def process_next(self) -> Any:
        """Carrot's old name of :meth:`fetch`.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Use fetch(enable_callbacks=True)")

    def discard_all(self, filterfunc: Callable[..., Any] | None = None) -> Any:
        """Purge the queue and return how many messages it held.

        Raises:
            NotImplementedError: a *filterfunc* is given; brokers discard all or nothing.
        """
        if filterfunc is not None:
            raise NotImplementedError("discard_all() purges the queues: filterfunc must be None")
        return self.purge()

    def iterconsume(self, limit: int | None = None, no_ack: bool | None = None) -> Iterator[Any]:
        """Consume; each step handles one event, *limit* at most."""
        return _iterconsume(self.connection, self, no_ack, limit)

    def wait(self, limit: int | None = None) -> list[Any]:
        """Handle *limit* events."""
        return list(self.iterconsume(limit))


class ConsumerSet(messaging.Consumer):
    """A consumer of several queues.

    Arguments:
        connection: where a channel is opened if none is given.
        from_dict: names of queues, each with the arguments of ``Queue.from_dict``.
        consumers: whose queues are taken over.
        channel: stays open when the set is closed.
        kwargs: of :class:`greenconn.Consumer`.
    """

    def __init__(
        self,
        connection: Connection,
        from_dict: Mapping[str, Mapping[str, Any]] | None = None,
        consumers: Iterable[messaging.Consumer] | None = None,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> None:
        self._provided_channel = bool(channel)
        self.backend: ChannelOrConnection = channel or connection.channel()
        queues = [queue for consumer in consumers or () for queue in consumer.queues]
        queues += [Queue.from_dict(name, **options) for name, options in (from_dict or {}).items()]
        super().__init__(self.backend, queues, **kwargs)

    def iterconsume(self, limit: int | None = None, no_ack: bool = False) -> Iterator[Any]:
        """Consume; each step handles one event, *limit* at most."""
        return _iterconsume(self.connection, self, no_ack, limit)

    def discard_all(self) -> Any:
        """Purge the queues and return how many messages they held."""
        return self.purge()

    def add_consumer_from_dict(self, queue: str, **options: Any) -> Any:
        """Add a queue by the arguments of ``Queue.from_dict``."""
        return self.add_queue(Queue.from_dict(queue, **options))

    def add_consumer(self, consumer: messaging.Consumer) -> None:
        """Add another consumer's queues."""
        for queue in consumer.queues:
            self.add_queue(queue)

    def revive(self, channel: ChannelOrConnection) -> None:
        """Go on with another channel."""
        self.backend = channel
        super().revive(channel)

    def close(self) -> None:
        """Cancel, and close the channel if it is the set's own."""
        self.cancel()
        if not self._provided_channel:
            self.backend.close()


def install_as_kombu() -> None:
    """Let ``import kombu`` and imports of its modules give greenconn's in this process.

    For programs and libraries that cannot be edited; to be called before any of them is imported.
    ``kombu.VERSION`` says which kombu's API it is.  Modules that greenconn has not
    (``kombu.asynchronous``, kombu's further transports) are kombu's own, where it is installed.  From
    now on unknown keywords of kombu's classes, which kombu ignores, are logged once each instead of
    refused.  A second call does nothing.

    Raises:
        RuntimeError: kombu is imported already.

    Example::

        from greenconn.compat import install_as_kombu

        install_as_kombu()

        import legacy_program
    """
    version = KOMBU_VERSION
    text = f"{version.major}.{version.minor}.{version.micro}"
    attributes = {"VERSION": version, "version_info": version, "__version__": text}
    ImportAlias("kombu", "greenconn", attributes, is_completed=True).install()
    tolerate_keywords()


def install_as_carrot() -> None:
    """Let ``import carrot`` and imports of its modules give :mod:`greenconn.compat.carrot`.

    For programs that cannot be edited; to be called before any of them is imported.  Unknown keywords
    are logged once each instead of refused from now on.  A second call does nothing.

    Raises:
        RuntimeError: carrot is imported already.
    """
    ours = importlib.import_module("greenconn.compat.carrot")
    attributes = {"VERSION": ours.VERSION, "__version__": ours.__version__}
    ImportAlias("carrot", ours.__name__, attributes).install()
    tolerate_keywords()


class ImportAlias(MetaPathFinder, Loader):
    """Imports the modules of *package* for those of the same paths below *name*.

    They are the same objects, not copies: a class is the same by either path.  Only the package
    itself is a module of its own, so that it may say another version.

    Arguments:
        name: of the package that is stood in for.
        package: of ours.
        attributes: of the package itself, before ours.
        is_completed: import modules that *package* has not from the files of *name*, where that is
            installed; what they import of *name* is ours.
    """

    def __init__(
        self, name: str, package: str, attributes: dict[str, Any], *, is_completed: bool = False
    ) -> None:
        self.name = name
        self.package = package
        self._attributes = attributes
        self._is_completed = is_completed

    def install(self) -> None:
        """Begin to stand in.  Again: nothing happens.

        Raises:
            RuntimeError: the package was imported already, so objects of both would meet.
        """
        if any(_is_same(finder, self) for finder in sys.meta_path):
            return
        if self.name in sys.modules:
            raise RuntimeError(
                f"{self.name} is already imported (from "
                f"{getattr(sys.modules[self.name], '__file__', None)}): call install_as_{self.name}() "
                f"before anything imports {self.name}, e.g. in the first lines of the program"
            )
        sys.meta_path.insert(0, self)

    # MetaPathFinder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find our counterpart of a module of theirs, or their own file where we have none."""
        if fullname == self.name:
            return ModuleSpec(fullname, self, is_package=True)
        if not fullname.startswith(self.name + "."):
            return None
        if _is_there(self._ours(fullname)):
            return ModuleSpec(fullname, self)
        spec = self._their_spec(fullname) if self._is_completed else None
        if spec is None:
            raise ModuleNotFoundError(
                f"{self.package}, which replaces {self.name} here, has no module for {fullname}"
                + (f", and {self.name} is not installed" * self._is_completed),
                name=fullname,
            )
        return spec

    # Loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import ours."""
        if spec.name == self.name:
            return _Package(self.name, self.package, self._attributes)
        module = importlib.import_module(self._ours(spec.name))
        # What the import system is about to write over; exec_module puts it back.
        spec.loader_state = (module.__spec__, module.__loader__, module.__package__)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: ours has been executed."""
        spec = module.__spec__
        if spec is not None and spec.loader_state is not None:
            module.__spec__, module.__loader__, module.__package__ = spec.loader_state
        # Modules that ours has imported have their place, even where the package has a function of
        # the same name (utils.uuid): importing them anew would put the module in its stead.
        for path, loaded in list(sys.modules.items()):
            if path.startswith(self.package + "."):
                sys.modules.setdefault(self.name + path.removeprefix(self.package), loaded)

    def _ours(self, fullname: str) -> str:
        return self.package + fullname.removeprefix(self.name)

    def _their_spec(self, fullname: str) -> ModuleSpec | None:
        # The path finder alone: an import hook may ask all finders itself, this one included.
        package = PathFinder.find_spec(self.name)
        if package is None or package.submodule_search_locations is None:
            return None
        folders = fullname.split(".")[1:-1]
        path = [os.path.join(each, *folders) for each in package.submodule_search_locations]
        return PathFinder.find_spec(fullname, path)


class _Package(ModuleType):
    """The package itself: the given names, and else those of ours."""

    def __init__(self, name: str, package: str, attributes: dict[str, Any]) -> None:
        ours = importlib.import_module(package)
        super().__init__(name, ours.__doc__)
        self.__dict__.update(attributes, __all__=ours.__all__)
        self.__dict__["_ours"] = ours

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._ours, name)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *dir(self._ours)})


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in is not there
        return False


def _is_same(finder: object, other: ImportAlias) -> bool:
    return isinstance(finder, ImportAlias) and (finder.name, finder.package) == (
        other.name,
        other.package,
    )
