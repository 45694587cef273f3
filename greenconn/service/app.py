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

The application is started by ``greenconn run module:app``, a gunicorn worker
(:mod:`greenconn.contrib.gunicorn`), Django's ``manage.py runconsumers``, a test (:meth:`App.testing`),
or the program itself (:meth:`App.start`).  The decorators return the functions unchanged, so tests can
call them directly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import tzinfo
from functools import wraps
from inspect import isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

import gevent

from greenconn.checks import Seconds, check_keywords, keyword_defaults, shows
from greenconn.connection import Connection, ConnectionArguments, connection_defaults
from greenconn.defaults import ARGUMENTS, check_limits, closed_at_exit
from greenconn.entity.queue import Queue, ShardedQueue
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.hub import PerHub
from greenconn.green.supervisor import name_of, spawn
from greenconn.message import Message
from greenconn.publishing import publish, publish_many
from greenconn.publishing.publisher import DEFAULTS, PublishArguments, Target
from greenconn.service.periodic import Clock, Cron, Every, Schedule, check_periodic, spawn_periodic
from greenconn.service.rpc import (
    CALL_DEFAULTS,
    CORRELATION,
    call,
    check_server,
    server_defaults,
    spawn_server,
)
from greenconn.session.broker import check_is_url
from greenconn.session.session import Session, sessions_in_use
from greenconn.worker.consumer import (
    ConsumerGreenlet,
    check_consumer,
    running_consumers,
    spawn_consumer,
    stop_all,
)
from greenconn.worker.options import (
    AllArguments,
    QueueLike,
    Returned,
    ServerArguments,
    option_defaults,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.limits.admission import Until
    from greenconn.testing import MemoryBroker


class _PublishArguments(PublishArguments, total=False):
    timeout: Seconds | None


class _PublishOneArguments(_PublishArguments, total=False):
    debounce: str | None
    transaction: Any
    unique: str | None
    until: Until | None


class _PublishManyArguments(_PublishArguments, total=False):
    debounce: Callable[[Any], str] | None
    transaction: Any
    unique: Callable[[Any], str] | None
    until: Until | None


class _CallArguments(_PublishArguments, total=False):
    accept: Iterable[str] | None
    schema: object


class _ConsumerArguments(AllArguments, total=False):
    schema: object


class _ServerArguments(ServerArguments, total=False):
    schema: object
    serializer: str | None


logger = logging.getLogger("greenconn.shutdown")

F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H", bound="Callable[[Any, Any], Returned] | Callable[[Any, Any, Any], Returned]")
S = TypeVar("S", bound="Service")
P = TypeVar("P", bound="Callable[[], Returned]")

Queues: TypeAlias = "QueueLike | Iterable[QueueLike]"
#: Returns a context that is entered before a handler is called with the message, and left after it.
AroundHandle: TypeAlias = Callable[[Message], AbstractContextManager[Any]]
#: The target of a message, which may be a shard of it.
AnyTarget: TypeAlias = Target | ShardedQueue
#: Returns a context for a publish; called with the target, the body and the headers.
AroundPublish: TypeAlias = Callable[[AnyTarget, Any, dict[str, Any]], AbstractContextManager[Any]]

#: Maximum seconds for handlers to finish at the end of a test.
STOPPING: Final = 10.0
#: Seconds, at most, that are kept for interrupting handlers and closing.
MARGIN: Final = 2.0


class Service(Protocol):
    """A background service of a program that is started and stopped together with its consumers."""

    def start(self) -> None:
        """Start the service in this thread and return immediately; do nothing if it is running."""

    def stop(self, timeout: Seconds | None = None) -> bool:
        """Stop the service gracefully.  May switch.

        Arguments:
            timeout: maximum seconds for the shutdown.  None waits without limit.

        Returns:
            Whether the service finished by itself within *timeout*.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class _Registration:
    """A consumer, server or periodic call that an application declares."""

    spawn: Callable[..., ConsumerGreenlet]
    """:func:`~greenconn.spawn_consumer`, :func:`~greenconn.service.rpc.spawn_server` or
    :func:`~greenconn.service.periodic.spawn_periodic`."""

    queue: Queues
    """Queue or queues to consume from; for periodic calls, their name."""

    function: Callable[..., Any]
    options: Mapping[str, Any]

    url: str | None = None
    """URL of another broker than the application's; None: of none."""


class App:
    """The consumers and RPC servers of a program, and the connection that they share.

    An application can be created when a module is imported: no connection is opened before :meth:`start`
    or a publish.

    Arguments:
        url: URL of the broker.  None, without *connection_kwargs*, uses the default connection, that is,
            the broker of :func:`greenconn.configure` or else of ``GREENCONN_URL``.
        limits: where limits, rates and unique keys are kept, if the broker does not keep them itself, as
            for :func:`greenconn.configure`.
        connection_kwargs: arguments of :class:`greenconn.Connection`.

    Raises:
        TypeError, ValueError, KeyError: the URL or an option is invalid.
    """

    @shows(ConnectionArguments, defaults=connection_defaults)
    def __init__(
        self,
        url: str | None = None,
        *,
        limits: Connection | str | None = None,
        **connection_kwargs: Unpack[ConnectionArguments],
    ) -> None:
        self._connections: PerHub[Connection] | None = None
        #: The consumers of each thread that were started and have not been stopped.
        self._consumers: PerHub[list[ConsumerGreenlet]] = PerHub(list)
        self._registrations: list[_Registration] = []
        self._services: list[Service] = []
        #: The clock of periodic calls; None uses the system clock.
        self._clock: Clock | None = None
        self._around_handle: list[AroundHandle] = []
        self._around_publish: list[AroundPublish] = []
        if url is not None or limits is not None or connection_kwargs:
            self.configure(url, limits=limits, **connection_kwargs)

    def __repr__(self) -> str:
        connection = self.connection
        where = "the default connection" if connection is None else connection.as_uri()
        return f"<App: {len(self._registrations)} consumers, {where}>"

    @shows(ConnectionArguments, defaults=connection_defaults)
    def configure(
        self,
        url: str | None = None,
        *,
        limits: Connection | str | None = None,
        **connection_kwargs: Unpack[ConnectionArguments],
    ) -> None:
        """Set the broker, for programs that know it only after the import.  Opens no connection.

        Arguments:
            url: URL of the broker, with its scheme.  None uses the broker of
                :func:`greenconn.configure` or else of ``GREENCONN_URL``.
            limits: where limits, rates and unique keys are kept, if the broker does not keep them
                itself, as for :func:`greenconn.configure`.
            connection_kwargs: arguments of :class:`greenconn.Connection`.

        Raises:
            RuntimeError: consumers of the application are running.
            TypeError, ValueError, KeyError: the URL or an option is invalid; the configuration is
                unchanged.
        """
        if self.consumers:
            raise RuntimeError("configure() must be called before start(): consumers run")
        check_keywords("App", connection_kwargs, ARGUMENTS)
        where = () if url is None else (url,)
        Connection(*where, **connection_kwargs)  # made to be checked; it never opens
        if url is not None and not connection_kwargs.get("transport"):
            check_is_url("url", url)
        check_limits(limits)

        def connect() -> Connection:
            connection = closed_at_exit(Connection(*where, **connection_kwargs))
            connection.session.limits = limits
            return connection

        self._connections = PerHub(connect)

    @property
    def connection(self) -> Connection | None:
        """The connection of this thread; None if the application uses the default connection."""
        return None if self._connections is None else self._connections.get()

    @property
    def consumers(self) -> list[ConsumerGreenlet]:
        """The running consumers and servers of this thread, in the order of their declaration."""
        return [each for each in self._consumers.get() if not each.ready()]

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The schedules of the periodic calls, by name."""
        return {
            str(each.queue): each.options["schedule"]
            for each in self._registrations
            if each.spawn is spawn_periodic
        }

    # -- declaring

    @shows(_ConsumerArguments, defaults=option_defaults)
    def consumer(
        self,
        queue: Queues,
        *,
        connection: str | None = None,
        **options: Unpack[_ConsumerArguments],
    ) -> Callable[[H], H]:
        """Return a decorator that declares a function as the handler of a queue.

        Arguments:
            queue: the queue to consume from, as for :func:`greenconn.spawn_consumer`.
            connection: URL of another broker than the application's; :meth:`testing` ignores it.
            options: options of the consumer, as for :func:`greenconn.spawn_consumer`.

        Raises:
            TypeError, ValueError: an option is invalid, or the function cannot be called as a handler.
        """
        if connection is not None and not isinstance(connection, str):
            raise TypeError(
                f"connection must be given to App(), or be the URL of another broker, got "
                f"{type(connection).__name__}"
            )
        if connection is not None:
            check_is_url("connection", connection)
        return self._registering(spawn_consumer, queue, options, connection)

    @shows(_ServerArguments, defaults=server_defaults)
    def rpc(self, queue: Queues, **options: Unpack[_ServerArguments]) -> Callable[[F], F]:
        """Return a decorator that declares a function as the RPC server of a queue.

        Arguments:
            queue: the queue of the requests, as for :func:`~greenconn.service.rpc.spawn_server`.
            options: options of the server, as for :func:`~greenconn.service.rpc.spawn_server`.

        Raises:
            TypeError, ValueError: an option is invalid, or the function cannot be called.
        """
        return self._registering(spawn_server, queue, options)

    def _registering(
        self,
        spawn: Callable[..., ConsumerGreenlet],
        queue: Queues,
        options: Mapping[str, Any],
        url: str | None = None,
    ) -> Callable[[F], F]:
        if "connection" in options:
            raise TypeError("connection must be given to App(), not to one of its consumers")
        if callable(queue) and not isinstance(queue, Queue):
            raise TypeError("the decorator must be called with a queue: @app.consumer('mail')")

        def register(function: F) -> F:
            if not callable(function):
                raise TypeError(f"function must be a callable, got {function!r}")
            # Here, so that a traceback leads to the decorator.
            if spawn is spawn_server:
                check_server(queue, function, options, "App.rpc")
            else:
                check_consumer(queue, function, options, "App.consumer")
            self._registrations.append(
                _Registration(spawn=spawn, queue=queue, function=function, options=options, url=url)
            )
            return function

        return register

    def service(self, service: S) -> S:
        """Register a service, which is started and stopped with the consumers, and return it.

        Arguments:
            service: object with methods ``start()`` and ``stop(timeout)``, such as the relay of an
                outbox.  A test waits for one with a method ``unsettled()`` until that returns 0.

        Raises:
            TypeError: *service* does not have these methods.
        """
        if not all(callable(getattr(service, name, None)) for name in ("start", "stop")):
            raise TypeError(f"service must have methods start and stop, got {service!r}")
        self._services.append(service)
        return service

    def every(self, seconds: Seconds, *, name: str | None = None) -> Callable[[P], P]:
        """Return a decorator that declares a function to be called every *seconds*, in one of all
        processes.

        The periods are counted from 1970, so all processes use the same times: 3600 is each full hour
        (UTC).  One process, the leader, makes the calls; when it ends, another process takes over.  If a
        call takes longer than the period, the calls due meanwhile are skipped, which is logged.  An
        exception of the function is logged.  If the leader dies during a call, the next leader makes
        that call again.

        Arguments:
            seconds: the period in seconds, above 0.
            name: name of the periodic call, the same in all processes and unique at the broker.  None
                uses the names of the module and the function.

        Raises:
            TypeError, ValueError: *seconds* is not a number above 0, or the name is already used.

        Example::

            @app.every(60)
            def publish_load():
                app.publish("load", {"load": os.getloadavg()[0]})
        """
        return self._periodically(Every(seconds), name)

    def cron(
        self, expression: str, *, tz: tzinfo | None = None, name: str | None = None
    ) -> Callable[[P], P]:
        """Return a decorator that declares a function to be called at the times of a cron expression.

        One of all processes makes the calls, as for :meth:`every`.  Requires the extra ``cron``: ``pip
        install 'greenconn[cron]'``.

        Arguments:
            expression: minute, hour, day of month, month and day of week, for example ``"*/5 8-18 * *
                MON-FRI"``.  With six fields, the first one is the second.
            tz: time zone of the expression, for example ``zoneinfo.ZoneInfo("Europe/Paris")``.  None is
                UTC.
            name: name of the periodic call, as for :meth:`every`.

        Raises:
            MissingExtra: ``cronsim`` is not installed.
            TypeError, ValueError: *expression* is invalid or never matches, or the name is already used.
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
        """Register a context that is entered around each call of a handler.  For use as a decorator.

        Use it for resources that belong to one message: an application context, a transaction, a trace.
        Contexts are entered in the order of their declaration and left in reverse order.  An error in a
        context counts as a failure of the handler.  An exception of the handler propagates through the
        contexts.

        Arguments:
            context: generator function with one ``yield``, or function that returns a context manager.
                It is called with the message; with ``batch_size``, with the list of messages.

        Returns:
            *context*, unchanged.

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
        self, context: Callable[[AnyTarget, Any, dict[str, Any]], Any]
    ) -> Callable[[AnyTarget, Any, dict[str, Any]], Any]:
        """Register a context that is entered around each publish and RPC call of this application.

        For use as a decorator.

        Arguments:
            context: generator function or function that returns a context manager, as for
                :meth:`around_handle`.  It is called with the target, the body and a dict of headers, to
                which it may add headers.

        Returns:
            *context*, unchanged.
        """
        self._around_publish.append(_context_manager(context))
        return context

    # -- publishing

    @shows(_PublishOneArguments, defaults=lambda: {**DEFAULTS, **keyword_defaults(publish)})
    def publish(
        self, target: AnyTarget, body: Any, **options: Unpack[_PublishOneArguments]
    ) -> None:
        """Publish a message, as :func:`greenconn.publish` does.  May switch.

        Arguments:
            target: the target of the message.
            body: content of the message.
            options: *timeout*, *transaction*, *unique*, *until*, *debounce* and the other options of
                :func:`greenconn.publish`.
        """
        if not self._around_publish:
            publish(target, body, connection=self.connection, **options)
            return
        with self._publishing(target, body, options):
            publish(target, body, connection=self.connection, **options)

    @shows(_PublishManyArguments, defaults=lambda: {**DEFAULTS, **keyword_defaults(publish_many)})
    def publish_many(
        self,
        target: AnyTarget,
        bodies: Iterable[Any],
        **options: Unpack[_PublishManyArguments],
    ) -> int:
        """Publish several messages, as :func:`greenconn.publish_many` does.  May switch.

        Contexts of :meth:`around_publish` are entered once, with the iterable as the body.

        Arguments:
            target: the target of all messages.
            bodies: iterable of message bodies.
            options: *timeout*, *transaction*, *unique*, *until*, *debounce* and the other options of
                :func:`greenconn.publish_many`.

        Returns:
            The number of messages.
        """
        with self._publishing(target, bodies, options):
            return publish_many(target, bodies, connection=self.connection, **options)

    @shows(
        _CallArguments,
        defaults=lambda: {**CALL_DEFAULTS, **keyword_defaults(call)},
        without=CORRELATION,
    )
    def call(self, queue: QueueLike, body: Any, **options: Unpack[_CallArguments]) -> Any:
        """Call an RPC server and return its reply, as ``greenconn.rpc.call`` does.  May switch.

        Arguments:
            queue: the queue of the server.
            body: content of the request.
            options: *timeout*, *schema*, *accept* and the other options of
                :func:`~greenconn.service.rpc.call`.
        """
        with self._publishing(queue, body, options):
            return call(queue, body, connection=self.connection, **options)

    @contextmanager
    def _publishing(
        self, target: AnyTarget, body: Any, options: _PublishArguments
    ) -> Iterator[None]:
        """Enter the contexts, and add the headers that they set to *options*."""
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
        """Start all consumers, servers and services that do not run in this thread yet.  Returns at
        once.

        Returns:
            All running consumers and servers of this thread, in the order of their declaration.

        Raises:
            RuntimeError: the application declares nothing.
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
        is_tested = self._clock is not None
        connection = self.connection if is_tested else registration.url or self.connection
        return registration.spawn(registration.queue, function, connection=connection, **options)

    def _wrapped(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(handler)
        def handle(body: Any, message: Message, *session: Any) -> Any:
            with self._handling(message):
                return handler(body, message, *session)

        return handle

    @contextmanager
    def _handling(self, message: Message) -> Iterator[None]:
        with ExitStack() as stack:
            for context in self._around_handle:
                stack.enter_context(context(message))
            yield

    def wait_ready(self, timeout: Seconds | None = None) -> bool:
        """Wait until the broker has confirmed all consumers of this thread.  May switch.

        Arguments:
            timeout: maximum seconds to wait for all consumers together.  None waits without limit.

        Returns:
            True once the broker has confirmed all consumers; False if the timeout passed or a consumer
            has ended.

        Raises:
            ChannelError, ConnectionError: the broker refused a consumer for good.
        """
        deadline = Deadline(timeout)
        # All of them, also those that have ended meanwhile, which raise why.
        return all(each.wait_ready(deadline.left()) for each in self._consumers.get())

    def stop(self, timeout: Seconds | None = None) -> bool:
        """Shut down the consumers, servers and services of this thread gracefully.  May switch.

        Services are stopped after the consumers, so they can finish work that handlers have passed to
        them.

        Arguments:
            timeout: maximum seconds to wait for all of them together.  None waits without limit.

        Returns:
            True if all of them ended in time.  False if the timeout passed: the remaining handlers were
            interrupted and their messages requeued.
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

        The broker is ``GREENCONN_URL`` of the Flask configuration, if that is set.  Handlers run within
        ``flask.app_context()``, so ``current_app`` and the sessions of Flask-SQLAlchemy work in them.
        The application is stored as ``flask.extensions["greenconn"]``.

        Arguments:
            flask: the ``flask.Flask`` application.
        """
        url = flask.config.get("GREENCONN_URL")
        if url:
            self.configure(url)
        flask.extensions["greenconn"] = self
        self._around_handle.append(lambda message: flask.app_context())

    @contextmanager
    def testing(self, *, raise_errors: bool = False) -> Iterator[MemoryBroker]:
        """Run this application on an empty in-memory broker, for a test.  May switch.

        The context manager starts the consumers, and stops them at the end.  They go by the clock of the
        test; see :mod:`greenconn.testing`.

        Arguments:
            raise_errors: as for :class:`~greenconn.testing.MemoryBroker`.

        Returns:
            A context manager that gives the :class:`~greenconn.testing.MemoryBroker`.

        Raises:
            TimeoutError: handlers did not finish within 10 s at the end; they were interrupted.

        Example::

            with app.testing() as test:
                app.publish("mail", {"to": "ada@example.org"})
                test.run_until_idle()
                assert outbox == ["ada@example.org"]
        """
        # It imports pytest where that is installed, which no program in production needs.
        from greenconn.testing import MemoryBroker

        before, self._connections = self._connections, None
        try:
            # The default connection leads to it.
            with MemoryBroker(raise_errors=raise_errors) as broker:
                self._clock = broker.clock
                broker.services = self._services
                self.start()
                self.wait_ready(STOPPING)
                broker.advance(0)  # periodic calls know when they are due
                yield broker
        finally:
            for service in self._services:
                service.stop(STOPPING)
            self._connections, self._clock = before, None


def _context_manager(context: Callable[..., Any]) -> Callable[..., AbstractContextManager[Any]]:
    """Return *context*, or a context manager function made from it if it is a generator function."""
    if not callable(context):
        raise TypeError(f"context must be a callable, got {context!r}")
    return contextmanager(context) if isgeneratorfunction(context) else context


#: The running services of each thread.
_services: Final[PerHub[list[Service]]] = PerHub(list)


def add_service(service: Service) -> None:
    """Register *service*, to be stopped by :func:`stop_and_close`.  Never switches."""
    _services.get().append(service)


def remove_service(service: Service) -> None:
    """Unregister a *service* that has ended; ignore it if it is not registered.  Never switches."""
    services = _services.get()
    if service in services:
        services.remove(service)


def time_for_handlers(seconds: float) -> float:
    """Return *seconds* minus the time reserved for interrupting handlers and closing connections."""
    return seconds - min(MARGIN, seconds / 4)


def stop_gracefully(consumers: list[ConsumerGreenlet], deadline: Deadline) -> bool:
    """Stop *consumers* gracefully.  May switch.

    Handlers that have not finished by the deadline are interrupted, and a warning is logged.

    Returns:
        Whether all handlers finished without being interrupted.
    """
    if stop_all(consumers, deadline):
        return True
    logger.warning(
        "handlers had not ended when the process stopped, so they were interrupted, and their "
        "messages requeued"
    )
    return False


def stop_and_close(deadline: Deadline) -> bool:
    """Stop the consumers and services of this thread, finish its publishes and close its connections.

    May switch.  First the consumers stop receiving messages, and running handlers finish.  Then pending
    publishes wait for their publisher confirms.  Then all connections are closed.  Connections that
    publish are closed last, since a handler may publish a message just before it returns.

    Arguments:
        deadline: the deadline for stopping and for the outstanding publisher confirms.

    Returns:
        Whether all handlers and services finished without being interrupted.
    """
    stopping = [spawn("shutdown-service", each.stop, deadline.left()) for each in _services.get()]
    is_whole = stop_gracefully(running_consumers(), deadline)
    gevent.joinall(stopping)
    is_whole = is_whole and all(each.value for each in stopping)
    sessions = sessions_in_use()
    publishing = [each for each in sessions if _may_publish(each)]
    _close_all(each for each in sessions if each not in publishing)
    _finish_publishes(publishing, deadline)
    _close_all(publishing)
    return is_whole


def _finish_publishes(sessions: Iterable[Session], deadline: Deadline) -> None:
    """Wait for the publisher confirms of *sessions*; log missing ones.  May switch."""
    gevent.joinall(
        [spawn("shutdown-confirms", _await_confirms, each, deadline) for each in sessions]
    )


def _close_all(sessions: Iterable[Session]) -> None:
    """Close *sessions* concurrently.  May switch."""
    gevent.joinall([spawn("shutdown-close", each.close) for each in sessions])


def _may_publish(session: Session) -> bool:
    """Return whether *session* is used for more than consumers."""
    services = session.services
    return services.publisher is not None or services.consumers is None


def _await_confirms(session: Session, deadline: Deadline) -> None:
    settle = getattr(session.life.link, "settle", None)
    if settle is not None:
        try:
            settle(deadline)
        except TimeoutError as exc:
            if is_thrown(exc):
                raise
            logger.warning(
                "%s did not confirm all publishes in time",
                session.broker.label,
                extra={"connection": session.broker.label},
            )
