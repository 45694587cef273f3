"""Applications: the consumers, RPC servers and periodic calls of a program, declared in one place.

A module declares them and starts nothing::

    import greenconn

    app = greenconn.App()                # the broker of GREENCONN_URL

    @app.consumer("mail", concurrency=10, retry={"tries": 5})
    def send_mail(body, message):
        ...

    @app.rpc("add")
    def add(numbers):
        return sum(numbers)

    @app.every(60)                       # or @app.cron("0 3 * * *"): in one of all processes
    def clean_up():
        ...

What starts them decides where they run: ``greenconn run module:app``, a gunicorn worker
(:mod:`greenconn.contrib.gunicorn`), Django's ``manage.py runconsumers``, a test
(:meth:`App.testing`), or the program itself (:meth:`App.start`).  The decorators return the functions
unchanged, so that tests may call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import tzinfo
from functools import wraps
from inspect import isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import gevent

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.green.blocking_monitor import name_of
from greenconn.green.deadline import Deadline
from greenconn.green.perhub import PerHub
from greenconn.message import Message
from greenconn.periodic import Clock, Cron, Every, Schedule, check_periodic, spawn_periodic
from greenconn.publishing import publish, publish_many
from greenconn.publishing.message import Target
from greenconn.rpc import call, check_server, spawn_server
from greenconn.shutdown import Service
from greenconn.testing import MemoryBroker
from greenconn.worker.consumer import (
    ConsumerGreenlet,
    check_consumer,
    spawn_consumer,
    stop_all,
)
from greenconn.worker.options import QueueLike

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.connection import ConnectionArguments
    from greenconn.publishing.message import PublishArguments
    from greenconn.worker.options import ConsumerArguments, ServerArguments

    class _PublishArguments(PublishArguments, total=False):
        timeout: float | None

    class _CallArguments(_PublishArguments, total=False):
        accept: Iterable[str] | None
        schema: object

    class _ConsumerArguments(ConsumerArguments, total=False):
        batch_interval: float | None
        batch_size: int | None
        schema: object

    class _ServerArguments(ServerArguments, total=False):
        schema: object
        serializer: str | None


__all__ = ["App", "AppTest"]

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=Service)
P = TypeVar("P", bound=Callable[[], Any])

Queues: TypeAlias = "QueueLike | Iterable[QueueLike]"
#: Entered before a handler is called with the message, left after it.
AroundHandle: TypeAlias = Callable[[Message], AbstractContextManager[Any]]
#: Entered before a message is published: called with the target, the body and the headers.
AroundPublish: TypeAlias = Callable[[Target, Any, dict[str, Any]], AbstractContextManager[Any]]

#: Seconds that handlers have to end when a test leaves its application.
STOPPING: Final = 10.0
#: Seconds between two looks of a test at what is left.
LOOK: Final = 0.002


@dataclass(frozen=True, kw_only=True, slots=True)
class _Registration:
    """A consumer or server that an application declares."""

    spawn: Callable[..., ConsumerGreenlet]
    """:func:`~greenconn.spawn_consumer`, :func:`greenconn.rpc.spawn_server` or
    :func:`~greenconn.periodic.spawn_periodic`."""

    queue: Queues
    """Of periodic calls their name."""

    function: Callable[..., Any]
    options: Mapping[str, Any]


class App:
    """The consumers and RPC servers of a program, and the connection that they share.

    It is made when a module is imported: nothing is opened before :meth:`start` or a publish.

    Arguments:
        url: of the broker; None, without further arguments, is the default connection: that of
            :func:`greenconn.configure`, else of ``GREENCONN_URL``.
        connection_kwargs: as :class:`greenconn.Connection` takes them.

    Raises:
        TypeError, ValueError, KeyError: the URL or an option is wrong.
    """

    def __init__(
        self, url: str | None = None, **connection_kwargs: Unpack[ConnectionArguments]
    ) -> None:
        self._connections: PerHub[Connection] | None = None
        #: Of each thread: its consumers that were started and have not been stopped.
        self._consumers: PerHub[list[ConsumerGreenlet]] = PerHub(list)
        self._registrations: list[_Registration] = []
        self._services: list[Service] = []
        #: For periodic calls; None is the system's.
        self._clock: Clock | None = None
        self._around_handle: list[AroundHandle] = []
        self._around_publish: list[AroundPublish] = []
        if url is not None or connection_kwargs:
            self.configure(url, **connection_kwargs)

    def __repr__(self) -> str:
        connection = self.connection
        where = "the default connection" if connection is None else connection.as_uri()
        return f"<App: {len(self._registrations)} consumers, {where}>"

    def configure(
        self, url: str | None = None, **connection_kwargs: Unpack[ConnectionArguments]
    ) -> None:
        """Set the broker, for programs that know it after the import.  Opens nothing.

        Arguments:
            url, connection_kwargs: as for the class.

        Raises:
            RuntimeError: consumers run.
            TypeError, ValueError, KeyError: the URL or an option is wrong; nothing was changed.
        """
        if self.consumers:
            raise RuntimeError("configure() must be called before start(): consumers run")
        Connection(url, **connection_kwargs)  # made to be checked; it never opens
        self._connections = PerHub(lambda: Connection(url, **connection_kwargs))

    @property
    def connection(self) -> Connection | None:
        """The connection of this thread; None is the default one."""
        return None if self._connections is None else self._connections.get()

    @property
    def consumers(self) -> list[ConsumerGreenlet]:
        """The consumers and servers of this thread that run, in the order of their declaration."""
        return [each for each in self._consumers.get() if not each.ready()]

    # -- declaring

    def consumer(self, queue: Queues, **options: Unpack[_ConsumerArguments]) -> Callable[[F], F]:
        """Return a decorator that declares a function as the handler of a queue.

        Arguments:
            queue, options: as for :func:`greenconn.spawn_consumer`.

        Raises:
            TypeError, ValueError: wrong options, or a function that is no handler.
        """
        return self._registering(spawn_consumer, queue, options)

    def rpc(self, queue: Queues, **options: Unpack[_ServerArguments]) -> Callable[[F], F]:
        """Return a decorator that declares a function as the server of a queue's calls.

        Arguments:
            queue, options: as for :func:`greenconn.rpc.spawn_server`.

        Raises:
            TypeError, ValueError: wrong options, or a function that cannot be called.
        """
        return self._registering(spawn_server, queue, options)

    def _registering(
        self, spawn: Callable[..., ConsumerGreenlet], queue: Queues, options: Mapping[str, Any]
    ) -> Callable[[F], F]:
        if "connection" in options:
            raise TypeError("connection must be given to App(), not to one of its consumers")
        if callable(queue) and not isinstance(queue, Queue):
            raise TypeError("the decorator must be called with a queue: @app.consumer('mail')")

        def register(function: F) -> F:
            if not callable(function):
                raise TypeError(f"function must be a callable, got {function!r}")
            # Here, so that a traceback leads to the decorator.
            (check_server if spawn is spawn_server else check_consumer)(queue, function, options)
            self._registrations.append(
                _Registration(spawn=spawn, queue=queue, function=function, options=options)
            )
            return function

        return register

    def service(self, service: S) -> S:
        """Start and stop *service* with the consumers; return it.

        Arguments:
            service: an object with ``start()`` and ``stop(timeout)``, such as the relay of an outbox.
        """
        if not all(callable(getattr(service, name, None)) for name in ("start", "stop")):
            raise TypeError(f"service must have methods start and stop, got {service!r}")
        self._services.append(service)
        return service

    def every(self, seconds: float, *, name: str | None = None) -> Callable[[P], P]:
        """Return a decorator that has a function called every *seconds*, in one of all processes.

        The periods begin in 1970, so that all processes have the same: 3600 is each full hour (UTC).
        The process that calls is the leader; when it ends another one goes on.  A call that takes
        longer than the period has the next ones left out, which is logged.  What the function raises
        is logged.  It is called again by the next leader if the first one dies in it.

        Arguments:
            seconds: above 0.
            name: the same in all processes, and no other function's at this broker; None is that of the
                module and the function.

        Raises:
            TypeError, ValueError: it is no such number; or the name is taken.

        Example::

            @app.every(60)
            def publish_load():
                app.publish("load", {"load": os.getloadavg()[0]})
        """
        return self._periodically(Every(seconds), name)

    def cron(
        self, expression: str, *, tz: tzinfo | None = None, name: str | None = None
    ) -> Callable[[P], P]:
        """Return a decorator that has a function called at the times of a cron expression.

        See :meth:`every`.

        It needs ``pip install 'greenconn[cron]'``.

        Arguments:
            expression: minute, hour, day of month, month, day of week: ``"*/5 8-18 * * MON-FRI"``.  With
                six fields the first one is the second.
            tz: the time zone, for example ``zoneinfo.ZoneInfo("Europe/Paris")``; None is UTC.
            name: as for :meth:`every`.

        Raises:
            MissingExtra: ``cronsim`` is not installed.
            TypeError, ValueError: it is no cron expression, or never comes; or the name is taken.
        """
        return self._periodically(Cron(expression, tz), name)

    def _periodically(self, schedule: Schedule, name: str | None) -> Callable[[P], P]:
        def register(function: P) -> P:
            check_periodic(function)
            own = name_of(function) if name is None else name
            if any(
                each.spawn is spawn_periodic and each.queue == own for each in self._registrations
            ):
                raise ValueError(f"name {own!r} is taken by another periodic call: pass name=")
            self._registrations.append(
                _Registration(
                    spawn=spawn_periodic,
                    queue=own,
                    function=function,
                    options={"schedule": schedule},
                )
            )
            return function

        return register

    def around_handle(self, context: Callable[[Message], Any]) -> Callable[[Message], Any]:
        """Enter a context around each call of a handler; a decorator.

        For what belongs to each message: an application context, a transaction, tracing.  Contexts
        are entered in the order of their declaration and left in the opposite one.  An error in one
        is a failure of the handler; what the handler raises passes through them.

        Arguments:
            context: a generator function with one ``yield``, or a function that returns a context
                manager; called with the message (with ``batch_size``, with the list of messages).

        Example::

            @app.around_handle
            def timed(message):
                begun = monotonic()
                yield
                print(monotonic() - begun)
        """
        self._around_handle.append(_context_manager(context))
        return context

    def around_publish(
        self, context: Callable[[Target, Any, dict[str, Any]], Any]
    ) -> Callable[[Target, Any, dict[str, Any]], Any]:
        """Enter a context around each publish and call of this application; a decorator.

        Arguments:
            context: as for :meth:`around_handle`; called with the target, the body and a dict of
                headers, to which it may add.
        """
        self._around_publish.append(_context_manager(context))
        return context

    # -- publishing

    def publish(self, target: Target, body: Any, **options: Unpack[_PublishArguments]) -> None:
        """Publish a message, as :func:`greenconn.publish` does.  May switch."""
        if not self._around_publish:
            publish(target, body, connection=self.connection, **options)
            return
        with self._publishing(target, body, options):
            publish(target, body, connection=self.connection, **options)

    def publish_many(
        self, target: Target, bodies: Iterable[Any], **options: Unpack[_PublishArguments]
    ) -> int:
        """Publish several messages, as :func:`greenconn.publish_many` does.  May switch.

        Contexts of :meth:`around_publish` are entered once, with the iterable as body.
        """
        with self._publishing(target, bodies, options):
            return publish_many(target, bodies, connection=self.connection, **options)

    def call(self, queue: QueueLike, body: Any, **options: Unpack[_CallArguments]) -> Any:
        """Call an RPC server and return its reply, as :func:`greenconn.rpc.call` does.  May switch."""
        with self._publishing(queue, body, options):
            return call(queue, body, connection=self.connection, **options)

    @contextmanager
    def _publishing(self, target: Target, body: Any, options: _PublishArguments) -> Iterator[None]:
        """Enter the contexts, and put the headers that they fill into *options*."""
        if not self._around_publish:
            yield
            return
        headers = options["headers"] = dict(options.get("headers") or ())
        with ExitStack() as stack:
            for context in self._around_publish:
                stack.enter_context(context(target, body, headers))
            yield

    # -- running

    def start(self) -> list[ConsumerGreenlet]:
        """Start the consumers, servers and services that do not run in this thread.  Returns at once.

        Returns:
            All that run, in the order of their declaration.

        Raises:
            RuntimeError: nothing is declared.
            WrongHub: the connection belongs to another thread.
        """
        if not self._registrations and not self._services:
            raise RuntimeError(
                "the application declares no consumer: decorate a function with @app.consumer('queue')"
            )
        for service in self._services:
            service.start()
        if self.consumers:
            return self.consumers
        self._consumers.get()[:] = map(self._spawn, self._registrations)
        return self.consumers

    def _spawn(self, registration: _Registration) -> ConsumerGreenlet:
        options = dict(registration.options)
        function = registration.function
        if registration.spawn is spawn_periodic:
            options["clock"] = self._clock
        if self._around_handle and registration.spawn is not spawn_consumer:
            options["around"] = self._handling
        elif self._around_handle:
            function = self._wrapped(function)
        return registration.spawn(
            registration.queue, function, connection=self.connection, **options
        )

    def _wrapped(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(handler)
        def handle(body: Any, message: Message) -> Any:
            with self._handling(message):
                return handler(body, message)

        return handle

    @contextmanager
    def _handling(self, message: Message) -> Iterator[None]:
        with ExitStack() as stack:
            for context in self._around_handle:
                stack.enter_context(context(message))
            yield

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the broker has confirmed all consumers of this thread.  May switch.

        Arguments:
            timeout: seconds for all of them; None waits.

        Returns:
            False: the time is up, or one of them has ended.

        Raises:
            ChannelError, ConnectionError: the broker refuses one for good.
        """
        deadline = Deadline(timeout)
        # All of them, also those that have ended meanwhile, which raise why.
        return all(each.wait_ready(deadline.left()) for each in self._consumers.get())

    def stop(self, timeout: float | None = None) -> bool:
        """Stop the consumers, servers and services of this thread in good order.  May switch.

        Arguments:
            timeout: seconds for all of them; None waits.

        Returns:
            False: the time was up; the handlers that were left were interrupted, and their messages
            requeued.
        """
        deadline = Deadline(timeout)
        is_whole = stop_all(self.consumers, deadline)
        # What handlers have left to them they do first.
        for service in self._services:
            is_whole = service.stop(deadline.left()) and is_whole
        return is_whole

    # -- elsewhere

    def init_app(self, flask: Any) -> None:
        """Use the configuration and the application context of a Flask application.

        ``GREENCONN_URL`` of its configuration, if it is there, is the broker.  Handlers run within
        ``flask.app_context()``, so that ``current_app`` and Flask-SQLAlchemy's sessions work.
        ``flask.extensions["greenconn"]`` is this application.

        Arguments:
            flask: the ``flask.Flask``.
        """
        url = flask.config.get("GREENCONN_URL")
        if url:
            self.configure(url)
        flask.extensions["greenconn"] = self
        self._around_handle.append(lambda message: flask.app_context())

    @contextmanager
    def testing(self) -> Iterator[AppTest]:
        """Run this application on an empty broker in memory, for a test.  May switch.

        Its consumers are started, and stopped at the end.  Messages expire, and delayed ones become
        ready, by the clock of the test.

        Raises:
            TimeoutError: at the end, handlers did not end within 10 s; they were interrupted.

        Example::

            with app.testing() as test:
                app.publish("mail", {"to": "ada@example.org"})
                test.wait_until_handled()
                assert outbox == ["ada@example.org"]
        """
        before, self._connections = self._connections, None
        try:
            with MemoryBroker() as broker:  # the default connection leads to it
                self._clock = broker.clock
                self.start()
                self.wait_ready(STOPPING)
                test = AppTest(self, broker)
                test.wait_until_handled(STOPPING)  # periodic calls know when they are due
                yield test
        finally:
            for service in self._services:
                service.stop(STOPPING)
            self._connections, self._clock = before, None


class AppTest:
    """An application that runs on a broker in memory; see :meth:`App.testing`.

    Attributes:
        app: the application.
        broker: the :class:`~greenconn.testing.MemoryBroker`: what waits in its queues can be looked at.
        clock: the broker's clock; ``clock.move(seconds)`` moves delays, expiry and retries.
    """

    def __init__(self, app: App, broker: MemoryBroker) -> None:
        self.app = app
        self.broker = broker
        self.clock = broker.clock

    def wait_until_handled(self, timeout: float = 5.0) -> None:
        """Wait until the application's consumers have nothing left to do.  May switch.

        That is: their queues are empty, and no handler runs or waits for a retry in this process.  What
        waits at the broker, delayed, is not waited for: move the clock.

        Arguments:
            timeout: seconds.

        Raises:
            TimeoutError: something was left; the text says what.
        """
        deadline = Deadline(timeout)
        idle = 0
        # What is handed out reaches a handler within the hub's turn: one look may see it nowhere.
        while idle < 2:
            left = self._left()
            idle = 0 if left else idle + 1
            if left and deadline.has_ended:
                raise TimeoutError(f"not handled within {timeout:g} s: {', '.join(left)}")
            gevent.sleep(LOOK if left else 0)

    def _left(self) -> list[str]:
        """Return what consumers have to do, in words."""
        left = []
        for consumer in self.app.consumers:
            lifecycle = consumer.lifecycle
            unsettled = consumer.unsettled()
            queues = lifecycle.options.queues
            waiting = sum(self.broker.count(_name_of(each)) for each in queues)
            if unsettled or waiting:
                left.append(f"{lifecycle.options.name}: {waiting} waiting, {unsettled} in handlers")
        return left


def _name_of(queue: QueueLike) -> str:
    return queue if isinstance(queue, str) else str(queue.name)


def _context_manager(context: Callable[..., Any]) -> Callable[..., AbstractContextManager[Any]]:
    """Return *context*, or a context manager made of it if it is a generator function."""
    if not callable(context):
        raise TypeError(f"context must be a callable, got {context!r}")
    return contextmanager(context) if isgeneratorfunction(context) else context
