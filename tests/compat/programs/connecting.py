"""Programs about connections: opening, failing, repeating, copying, pools."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

from tests.compat.programs.library import Library, Names, fetch, outcome

#: Nobody listens there.
DEAD = "amqp://guest:guest@127.0.0.1:1//"
QUICK = {"interval_start": 0.01, "interval_step": 0.01, "interval_max": 0.03}


def opening_and_closing(lib: Library, connection: Any, names: Names) -> Any:
    log: list[Any] = [connection.connected, connection.declared_entities]
    link = connection.connect()
    log += [connection.connected, connection.connection is link, connection.connect() is link]
    log += [connection.default_channel is connection.default_channel]
    log += [connection.channel() is not connection.default_channel]
    log += [len(connection.declared_entities)]
    log += [connection.ensure_connection() is connection]
    log += [connection.release(), connection.connected, connection.close()]
    connection.connect()
    log += [connection.connected]
    with connection as entered:
        log += [entered is connection]
    log += [connection.connected]
    connection.connect()
    connection.collect()
    log += [connection.connected]
    connection.connect()
    return [*log, connection.connected]


def connecting_to_nobody(lib: Library, connection: Any, names: Names) -> Any:
    dead = lib.connection.Connection(DEAD, connect_timeout=1)
    log: list[Any] = []
    for call in (dead.connect, dead.channel, lambda: dead.default_channel):
        log.append(outcome(call))
    heard: list[Any] = []
    calls: list[int] = []
    for reraise in (True, False):
        failed = outcome(
            dead.ensure_connection,
            errback=lambda exc, interval: heard.append((type(exc).__name__, interval)),
            max_retries=3,
            callback=lambda: calls.append(1),
            reraise_as_library_errors=reraise,
            **QUICK,
        )
        log.append(failed)
    log += [heard, len(calls), dead.connected]
    producer = lib.messaging.Producer(dead)
    policy = {"max_retries": 2, **QUICK}
    log.append(outcome(producer.publish, "x", "k", retry=True, retry_policy=policy))
    log.append(outcome(producer.publish, "x", "k"))
    dead.release()
    options = {"max_retries": 1, **QUICK}
    bounded = lib.connection.Connection(DEAD, connect_timeout=1, transport_options=options)
    log.append(outcome(lambda: bounded.default_channel))
    return log


def login_refused(lib: Library, connection: Any, names: Names) -> Any:
    """The network says yes, the broker no."""
    wrong = connection.clone(password="wrong")
    with wrong:
        log = [outcome(wrong.connect), wrong.connected]
    elsewhere = connection.clone(virtual_host=names("v"))
    with elsewhere:
        log += [outcome(elsewhere.connect)]
    return log


def hear(heard: list[float], exc: Exception, interval: float) -> None:
    """Take note of *interval*."""
    heard.append(interval)


def failing_over(lib: Library, connection: Any, names: Names) -> Any:
    live = connection.as_uri(include_password=True)
    log: list[Any] = []
    for urls in (f"{DEAD};{live}", [DEAD, live]):
        with lib.connection.Connection(urls, connect_timeout=1) as several:
            log.append([each.replace(live, "live") for each in several.alt])
            log.append([several.completes_cycle(retries) for retries in range(4)])
            log.append(several.as_uri())
            heard: list[float] = []
            several.ensure_connection(partial(hear, heard), **QUICK)
            log.append([heard, several.connected, several.as_uri(True).replace(live, "live")])
    with lib.connection.Connection([live, DEAD], failover_strategy="shuffle") as other:
        log.append([len(other.alt), other.info()["failover_strategy"]])
    with lib.connection.Connection([DEAD, live], failover_strategy="round-robin") as third:
        third.maybe_switch_next()
        log.append(third.as_uri(True).replace(live, "live"))
        third.maybe_switch_next()
        log.append(third.as_uri(True).replace(live, "live"))
    connection.maybe_switch_next()
    log.append([connection.alt, connection.cycle, connection.completes_cycle(0)])
    return log


class Work:
    """Something to be done that fails so many times first."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.times = times
        self.calls: list[Any] = []
        self.heard: list[str] = []
        self.revived: list[Any] = []
        self.on_revive: list[Any] = []

    def revive(self, channel: Any) -> None:
        """Take note."""
        self.revived.append(channel)

    def errback(self, exc: Exception, interval: float) -> None:
        """Take note."""
        self.heard.append(type(exc).__name__)

    def work(self, *args: Any, **kwargs: Any) -> str:
        """Its doc."""
        self.calls.append((args, kwargs))
        if len(self.calls) <= self.times:
            raise self.error
        return "done"


def repeating(lib: Library, connection: Any, names: Names) -> Any:
    log: list[Any] = []
    lost = connection.recoverable_connection_errors[0]
    plans: list[tuple[Exception, int, dict[str, Any]]] = [
        (lost("lost"), 2, {}),
        (lost("lost"), 9, {"max_retries": 3}),
        (lost("lost"), 1, {}),
        (connection.recoverable_channel_errors[0]("lost"), 2, {"max_retries": 5}),
        (LookupError("own"), 1, {}),
        (LookupError("own"), 2, {"retry_errors": (LookupError,)}),
        (lib.exceptions.OperationalError("ours"), 1, {}),
    ]
    for error, times, options in plans:
        work = Work(error, times)
        ensured = connection.ensure(
            work,
            work.work,
            errback=work.errback,
            on_revive=work.on_revive.append,
            **QUICK,
            **options,
        )
        result = outcome(ensured, 1, key=2)
        log.append([result, work.heard, len(work.calls), work.calls[0], connection.connected])
        log.append([len(work.revived) == len(work.on_revive), ensured.__name__, ensured.__doc__])
    return log


def retrying_with_a_channel(lib: Library, connection: Any, names: Names) -> Any:
    used: list[Any] = []
    lost = connection.recoverable_connection_errors[0]

    def work(number: int, channel: Any = None) -> int:
        used.append(channel)
        if len(used) == 2:
            raise lost("lost")
        return number

    retried = connection.autoretry(work)
    first = retried(1)
    second = retried(2)
    log = [first[0], second[0], first[1] is used[0], second[1] is used[-1], len(used)]
    log += [used[0] is used[1], second[1] is connection.default_channel]
    channel = connection.channel()
    third = connection.autoretry(work, channel)(3)
    log += [third[0], third[1] is channel]

    def fails(channel: Any = None) -> None:
        raise lost("again")

    log.append(outcome(connection.autoretry(fails, max_retries=2, **QUICK)))
    return log


def key(connection: Any) -> Any:
    """What pools know a connection by."""
    return hash(connection.__eqhash__())


def copies(lib: Library, connection: Any, names: Names) -> Any:
    url = "amqp://user:secret@host:99/v"
    one = lib.connection.Connection(
        url, heartbeat=7, connect_timeout=3, transport_options={"client_properties": {"a": 1}}
    )
    log: list[Any] = []
    for other in (one.clone(), copy.copy(one), pickle.loads(pickle.dumps(one))):
        log.append([other is one, other == one, key(other) == key(one), other.info()])
    changed = one.clone(virtual_host="w", port=None)
    log.append([key(changed) == key(one), changed.info(), changed.as_uri(), changed.host])
    same = lib.connection.Connection(url, transport_options={"client_properties": {"a": 1}})
    log.append([key(same) == key(one), one != lib.connection.Connection(url), one == url])
    log.append([one == one, hash(one) == hash(one), len({one, one.clone(), one})])
    several = lib.connection.Connection("amqp://a//;amqp://b//", userid="u")
    for other in (several.clone(), pickle.loads(pickle.dumps(several))):
        log.append([other.alt, other.as_uri(), other.info()["alternates"]])
    one.switch("amqp://other:1234/x")
    log.append([one.info(), one.as_uri(True)])
    one.switch("plain.host")
    log.append([one.hostname, one.virtual_host, one.transport_cls])
    log.append([one.host, one.port, key(one.clone()) == key(one)])
    return log


def what_it_says_of_itself(lib: Library, connection: Any, names: Names) -> Any:
    connection.connect()
    transport = connection.transport
    log: list[Any] = [
        sorted({error.__name__ for error in connection.connection_errors}),
        sorted({error.__name__ for error in connection.channel_errors}),
        sorted({error.__name__ for error in connection.recoverable_connection_errors}),
        sorted({error.__name__ for error in connection.recoverable_channel_errors}),
        connection.supports_heartbeats,
        [connection.supports_exchange_type(kind) for kind in ("direct", "topic", "fanout", "x")],
        outcome(connection.heartbeat_check, rate=2),
        [transport.driver_type, transport.driver_name, type(transport.driver_version())],
        [transport.can_parse_url, transport.default_port, transport.default_connection_params],
        sorted(transport.implements),
        [transport.supports_heartbeats, transport.client is connection],
        transport.verify_connection(connection.connection),
        connection.get_transport_cls() is type(connection.create_transport()),
        [transport.as_uri.__name__, outcome(transport.as_uri, "amqp://h")],
        [connection.connect_timeout, connection.uri_prefix, connection.login_method],
        [connection.ssl, connection.heartbeat, connection.transport_options],
    ]
    with connection.clone(heartbeat=10) as beating:
        log += [beating.get_heartbeat_interval(), beating.heartbeat, beating.clone().heartbeat]
    return [*log, connection.host, connection.port, connection.userid, connection.password]


def pool_of_connections(lib: Library, connection: Any, names: Names) -> Any:
    pool = connection.Pool(2)
    log: list[Any] = [pool.limit, type(pool).__name__]
    first, second = pool.acquire(), pool.acquire(block=True, timeout=1)
    log += [key(first) == key(connection), first is second, first.as_uri() == connection.as_uri()]
    log += [outcome(pool.acquire), outcome(pool.acquire, block=True, timeout=0.05)]
    log += [outcome(pool.acquire).names[0]]
    first.release()
    with pool.acquire(block=True) as third:
        log += [isinstance(third, lib.connection.Connection), third.connected]
        lib.messaging.Producer(third).publish("x", names("unheard-of"))
        log += [third.connected]
    second.release()
    fourth = pool.acquire()
    log += [third == fourth or second == fourth, fourth == connection, fourth != connection]
    fourth.release()
    log += [outcome(pool.resize, 3), pool.limit]
    held = pool.acquire()
    log += [outcome(pool.resize, 1), pool.limit]
    log += [outcome(pool.resize, 1, ignore_errors=True), pool.limit]
    held.release()
    with pool.acquire_channel(block=True) as (pooled, channel):
        log += [pooled.connected, channel is pooled.default_channel]
    log += [pool.force_close_all(), outcome(pool.acquire)]
    unlimited = connection.Pool()
    many = [unlimited.acquire() for _ in range(15)]
    log += [unlimited.limit, len({id(each) for each in many})]
    for each in many:
        each.release()
    unlimited.force_close_all()
    preloaded = connection.Pool(3, preload=1)
    log += [preloaded.limit]
    preloaded.force_close_all(close_pool=False)
    again = preloaded.acquire()
    log += [key(again) == key(connection)]
    again.release()
    preloaded.force_close_all()
    return log


def pool_of_channels(lib: Library, connection: Any, names: Names) -> Any:
    pool = connection.ChannelPool(2)
    first, second = pool.acquire(), pool.acquire()
    log: list[Any] = [callable(first), first is second, outcome(pool.acquire)]
    log += [outcome(pool.acquire, block=True, timeout=0.05)]
    queue = lib.entity.Queue(names("q"), durable=False)
    queue(first).declare()
    lib.messaging.Producer(first).publish("x", names("q"))
    queue(first).queue_declare(passive=True)  # the broker has it now
    log += [queue(second).get(no_ack=True).payload]
    first.release()
    third = pool.acquire()
    log += [pool.limit]
    third.release()
    second.release()
    pool.force_close_all()
    return log


def pool_of_producers(lib: Library, connection: Any, names: Names) -> Any:
    pools = lib.pools
    queue = lib.entity.Queue(names("q"))
    log: list[Any] = [pools.get_limit()]
    try:
        with pools.producers[connection].acquire(block=True) as producer:
            producer.publish({"a": 1}, names("q"), declare=[queue], retry=True)
            log += [type(producer).__name__, key(producer.connection) == key(connection)]
        log += [pools.producers[connection] is pools.producers[connection.clone()]]
        log += [pools.connections[connection].limit, pools.producers[connection].limit]
        log += [pools.set_limit(3), pools.get_limit(), pools.connections[connection].limit]
        with pools.connections[connection].acquire(block=True) as pooled:
            log += [fetch(pooled, queue, no_ack=True).payload]
        own = pools.Connections(limit=1)
        with own[connection].acquire():
            log += [own.limit, own[connection].limit, outcome(own[connection].acquire)]
        own[connection].force_close_all()
    finally:
        log += [pools.set_limit(10)]
        pools.reset()
    return [*log, len(pools.producers), len(pools.connections)]


PROGRAMS = [
    opening_and_closing,
    connecting_to_nobody,
    login_refused,
    failing_over,
    repeating,
    retrying_with_a_channel,
    copies,
    what_it_says_of_itself,
    pool_of_connections,
    pool_of_channels,
    pool_of_producers,
]
