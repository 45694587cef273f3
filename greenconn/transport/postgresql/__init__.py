"""PostgreSQL: a durable broker in a database that the processes of any number of machines share.

Theory
------
Everything is in one schema: queues, messages, exchanges, bindings, who consumes.  A link has one
connection to the server, for statements and for notifications: ``LISTEN`` on a channel of its own.
When a claim finds less than was wanted, the link *arms* its consumer; the next link that stores a
message notifies it.  So idle consumers send no statements, and busy ones are not notified.

What a process publishes, claims or settles in a turn is one statement each.  What comes by time alone
(delays, leases, expiry) is looked at by a timer of each process, set to the next time that is known,
and whenever the leases are renewed.

Behind a pooler that keeps no session (PgBouncer in transaction mode) nothing can be notified: links poll
the queues that they consume.
"""

from __future__ import annotations

from greenconn.importing import needed

needed("psycopg", "psycopg", "postgres")

# ruff: noqa: E402 - these import psycopg
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl

import psycopg
from gevent import get_hub

from greenconn.broker.channel import StoreChannel
from greenconn.broker.exchanges import Topology
from greenconn.broker.link import StoreLink, StoreOptions, StoreTransport
from greenconn.broker.port import CLAIM_TIME, Claimed, Entry, LeaseExpired, SettleRequest, Store
from greenconn.broker.queues import Declaration
from greenconn.checks import check_seconds, check_type, invalid
from greenconn.credentials import supplied
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    InconsistencyError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline
from greenconn.green.hub import weakly
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import Gathered, OnDemand, Ticker
from greenconn.options import split_url
from greenconn.transport.postgresql import messages, schema
from greenconn.transport.postgresql.connection import NotStored, Session, as_error, defaults, parsed
from greenconn.transport.postgresql.messages import TransactionChannel, channel_of
from greenconn.transport.postgresql.queues import (
    CHANNEL,
    Queues,
    SharedTopology,
    announce,
    announce_all,
    announce_rest,
    arm,
    deregister,
    disarm,
    register,
    renew_links,
)
from greenconn.url import mask_secrets

__all__ = ["Channel", "PostgresOptions", "Transport"]

logger = logging.getLogger("greenconn.transport.postgresql")

#: As for the other transports (``green.connect``), by libpq's names.
KEEPALIVE: Final = {
    "keepalives_idle": "60",
    "keepalives_interval": "10",
    "keepalives_count": "9",
    "tcp_user_timeout": "150000",
}

#: For acks and requeues that the server cannot store now.
SETTLING: Final = RetryPolicy()

#: Parameters of libpq that name a server or a database.
_PLACES: Final = frozenset({"dbname", "host", "hostaddr", "port", "service"})

#: The servers behind poolers that were logged.
_pooled: Final[set[str]] = set()

#: Seconds between two looks because of the clock, at least.
LEAST_PAUSE: Final = 0.005


class PostgresOptions(StoreOptions):
    """The options of a connection to PostgreSQL.  A URL may have them, beside libpq's parameters."""

    schema: str = "greenconn"
    """Name of the schema that has the tables.  Programs with different schemas share nothing."""

    polling_interval: float = 1.0
    """Seconds between two looks for messages of idle consumers, behind a pooler that keeps no session
    (PgBouncer with ``pool_mode = transaction``).  Unused otherwise: the server notifies consumers."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_seconds(self, "polling_interval", above_zero=True, optional=False)
        check_type(self, str, "schema")
        if not self.schema or "\0" in self.schema or len(self.schema.encode()) > 63:
            raise invalid(self, "schema", "a name of at most 63 bytes")


class Channel(StoreChannel[StoreLink]):
    """A channel to a database."""

    supported_arguments = replace(
        StoreChannel.supported_arguments,
        queue=StoreChannel.supported_arguments.queue
        | {
            "x-expires",
            "x-max-length",
            "x-max-length-bytes",
            "x-overflow",
            "x-single-active-consumer",
        },
    )

    def within(self, transaction: object) -> TransactionChannel:
        """Return what publishes over this channel in a transaction of the program's.

        Arguments:
            transaction: see :func:`greenconn.publish`.
        """
        return TransactionChannel(self, transaction)


class Transport(StoreTransport):
    """``postgresql://user:password@host/database``: a schema of a database.

    ``transport_options`` are those of :class:`~greenconn.transport.postgresql.PostgresOptions`, which
    may also stand behind the question mark of the URL.  What else stands there is libpq's:
    ``sslmode``, ``target_session_attrs``, ``service`` and others.
    """

    Channel = Channel
    Options: ClassVar[type[StoreOptions]] = PostgresOptions
    driver_type = "postgresql"
    driver_name = "psycopg"
    default_port = 5432
    can_parse_url = True
    inner_schemes = frozenset({"psycopg"})
    connection_errors = (
        ConnectionError,
        InconsistencyError,
        OSError,
        psycopg.OperationalError,
        psycopg.InterfaceError,
    )
    channel_errors = (ChannelError, psycopg.DatabaseError)
    recoverable_connection_errors = (
        RecoverableConnectionError,
        OSError,
        psycopg.OperationalError,
        psycopg.InterfaceError,
    )

    def driver_version(self) -> str:
        return str(psycopg.__version__)

    def _uri(self) -> str:
        """Return the URL for libpq, without the options of ours in it; empty if there is none."""
        host = self.client.hostname or ""
        if "://" not in host:
            return ""
        uri, _ = split_url(host, PostgresOptions)
        return f"postgresql://{uri.partition('://')[2]}"

    def conninfo(self) -> dict[str, Any]:
        """Return libpq's parameters.  Holds secrets: never shown.  May switch, for the password.

        Raises:
            ValueError: the URL is malformed; says how, with the password masked.
            CannotUse: it names a service that is not defined.
        """
        client = self.client
        uri = self._uri()
        conninfo = parsed(uri) if uri else {}
        if not uri:
            given = {"host": client.hostname or "localhost", "port": client.port}
            conninfo.update((name, str(value)) for name, value in given.items() if value)
        database = (client.virtual_host or "").strip("/")
        if database and "dbname" not in conninfo:
            conninfo["dbname"] = database
        if client.userid:
            conninfo["user"] = client.userid
        if client.password:
            password = client.password
            conninfo["password"] = supplied(password) if callable(password) else password
        conninfo = {**defaults(conninfo), **conninfo}
        conninfo.update(_tls(client.ssl, conninfo))
        # A standby takes no messages: libpq goes on to the next host.
        conninfo.setdefault("target_session_attrs", "read-write")
        conninfo.setdefault("application_name", "greenconn")
        for name, value in KEEPALIVE.items():
            conninfo.setdefault(name, value)
        conninfo["client_encoding"] = "utf8"
        conninfo.pop("connect_timeout", None)  # the connection's own
        return conninfo

    def place(self) -> str:
        """Servers, database and schema."""
        uri, _, query = self._uri().partition("?")
        server = mask_secrets(uri.rpartition("@")[2] or super().place())
        others = [f"{name}={value}" for name, value in parse_qsl(query) if name in _PLACES]
        return " ".join((server, *others, self.options.schema))

    def make_store(self, wake: Callable[[str | None], None]) -> PostgresStore:
        """Return a store that is not open yet."""
        self._check_url()
        return PostgresStore(self.client, wake, self.options, self.conninfo)

    def _check_url(self) -> None:
        uri = self._uri()
        if uri:
            parsed(uri)

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Mask the password of a URL, which may name many servers."""
        if not uri:
            return "postgresql://"
        return uri if include_password else mask_secrets(uri, mask)


def _tls(given: Any, conninfo: Mapping[str, Any]) -> dict[str, str]:
    """libpq's parameters for what ``ssl=`` says everywhere else."""
    if not given or "sslmode" in conninfo:
        return {}
    settings = {"sslmode": "verify-full"}
    if isinstance(given, Mapping):
        names = {"ca_certs": "sslrootcert", "certfile": "sslcert", "keyfile": "sslkey"}
        for name, theirs in names.items():
            value = given.get(name) or given.get(f"ssl_{name}")
            if value:
                settings[theirs] = str(value)
        if given.get("check_hostname", given.get("ssl_check_hostname", True)) is False:
            settings["sslmode"] = "verify-ca"
        if given.get("cert_reqs", given.get("ssl_cert_reqs")) in (0, "none", "CERT_NONE"):
            settings["sslmode"] = "require"
    return settings


class PostgresStore(Store):
    """A store in a schema.

    Arguments:
        options: the transport options.
        conninfo: returns libpq's parameters; may switch.
    """

    put_limit = 500
    put_bytes = 4 * 1024 * 1024
    settle_limit = 1000
    claim_limit = 100
    body_encoding = None
    keeps_body_apart: ClassVar[bool] = True
    replaces_at_once: ClassVar[bool] = True
    topology: Topology

    def __init__(
        self,
        client: Any,
        wake: Callable[[str | None], None],
        options: PostgresOptions,
        conninfo: Callable[[], Mapping[str, Any]],
    ) -> None:
        super().__init__(client, wake)
        self.lease: float = options.lease
        self._options = options
        self._conninfo = conninfo
        self._session: Session | None = None
        self._queues: Queues
        #: By which the link is registered; None: it is not.
        self._number: int | None = None
        #: It has consumers or exclusive queues, which are gone when it is not registered any more.
        self._has_entities = False
        #: Numbers and names of the queues that are consumed here.
        self._consumed: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        #: Those of which only the oldest consumer is served.
        self._single: set[int] = set()
        #: Those of them whose active consumer is here.
        self._active: set[int] = set()
        #: Those of which the last claim gave less than was wanted, and those that are armed, unless a
        #: notification is on its way.
        self._dry: set[int] = set()
        self._armed: set[int] = set()
        self._maintenance = OnDemand("postgresql-maintenance", self._maintain)
        #: Its role has the rights for that; one that only publishes may have none.
        self._may_maintain = True
        #: Queues for which others wait than those that this link has notified.
        self._followed: Gathered[int] = Gathered(CLAIM_TIME, self._follow_up, "postgresql-wake")
        #: Where no notification comes.
        self._polling = OnDemand("postgresql-polling", self._poll)
        self._polls = Ticker(options.polling_interval, self._on_poll, "postgresql-polling")
        #: When messages without a queue were looked for.
        self._pruned_at = monotonic()
        self._timer: Any = None
        self._timer_at: float | None = None
        self._is_open = False
        #: Messages that transactions of the program delete, or have deleted: nothing is to be done for
        #: them, and none is missed.
        self.leaving: set[messages.Handle] = set()

    # -- life

    def open(self, deadline: Deadline) -> None:
        session = self._session = Session(
            self._conninfo(),
            self.client.as_uri(),
            self._options.schema,
            self._notified,
            self._lost,
        )
        session.open(deadline, self._options.reply_timeout, self.lease)
        if session.is_pooled:
            self._log_pooler()
        session.call(schema.ensure, session)
        self._queues = Queues(session, self.owner)
        self.topology = SharedTopology(session)
        self._is_open = True

    def _log_pooler(self) -> None:
        """Log once that the server cannot notify.  May switch."""
        where = self.client.as_uri()
        if where not in _pooled:
            _pooled.add(where)
            logger.warning(
                "%s: a pooler in between keeps no session (pool_mode = transaction), and no "
                "notification passes: idle consumers look for messages every %g s "
                "(polling_interval), and another process sees that this one is dead when its lease "
                "ends; for notifications, use pool_mode = session or connect to the server",
                where,
                self._options.polling_interval,
                extra={"connection": where},
            )

    def close(self) -> None:
        session, number = self._session, self._number
        if session is not None and self._is_open:
            if self._followed.items:
                session.call(announce_all, session, set(self._followed.items), self.owner)
            if number is not None:
                session.call(self._leave, session, number)
        self.drop()

    def _leave(self, session: Session, number: int) -> None:
        returned = messages.requeue_all(session, number)
        self._queues.remove_links([self.owner])
        announce_all(session, returned, self.owner)  # its lock goes with the session

    def drop(self) -> None:
        self._is_open = False
        self._stop_timer()
        self._polls.stop()
        self._polling.end()
        self._maintenance.end()
        self._followed.stop()
        if self._session is not None:
            self._session.drop()

    def _lost(self, exc: Exception) -> None:
        # In the hub.
        if self._is_open:
            self.lost(exc)

    @property
    def session(self) -> Session:
        """The session, once there is one."""
        assert self._session is not None
        return self._session

    def _register(self) -> int:
        """Return the number of this link, and be known to the others.  Within a call."""
        if self._number is None:
            session = self.session
            if not session.is_pooled:
                session.fetch(f'LISTEN "{CHANNEL}{self.owner}"')
                session.fetch(f'LISTEN "{channel_of(session.schema)}"')
            self._number = register(session, self.owner, self.lease)
        return self._number

    # -- notifications, and what comes by time

    def _notified(self, channel: str, payload: str) -> None:
        for word in payload.split():
            if word.startswith("@"):
                self._schedule(float(word[1:]))
                continue
            number = int(word) if word.isdigit() else 0
            self._armed.discard(number)
            name = self._consumed.get(number)
            if name is not None:
                self.wake(name)
            elif number == 0:
                self._maintenance.start()

    def _schedule(self, seconds: float | None) -> None:
        """Look at what comes by time in so many seconds, or earlier.  Never switches."""
        if seconds is None or not self._is_open:
            return
        loop = get_hub().loop
        at = loop.now() + max(seconds, LEAST_PAUSE)
        if self._timer_at is not None and self._timer_at <= at:
            return
        self._stop_timer()
        self._timer_at = at
        self._timer = loop.timer(max(seconds, LEAST_PAUSE), ref=False)
        self._timer.start(weakly(self._on_time), update=True)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        self._timer_at = None
        if timer is not None:
            timer.close()

    def _on_time(self) -> None:
        # In the hub.
        self._stop_timer()
        if self._is_open:
            self._maintenance.start()

    def _on_poll(self, lag: float) -> None:
        # In the hub.
        self._polling.start()

    def _follow_up(self, numbers: Collection[int]) -> None:
        if self._is_open:
            self._call_or_lose(lambda: self._announce_rest(numbers))

    def _announce_rest(self, numbers: Collection[int]) -> None:
        self._followed.add(announce_rest(self.session, numbers, self.owner))

    def _maintain(self) -> None:
        if self._may_maintain or self._number is not None:
            self._call_or_lose(self._look_as_allowed)

    def _poll(self) -> None:
        self._call_or_lose(self._look_again)

    def _call_or_lose(self, function: Callable[[], object]) -> None:
        try:
            self.session.call(function)
        except NotStored as exc:
            logger.error("%s", exc, extra={"connection": self.client.as_uri()})
        except Exception as exc:
            if self._is_open:
                self.lost(
                    as_error(exc, self.client.as_uri()) if isinstance(exc, psycopg.Error) else exc
                )

    def _look_as_allowed(self) -> None:
        """Look, unless the role of a link that only publishes may not do that.  Within a call."""
        try:
            self._look()
        except psycopg.errors.InsufficientPrivilege:
            if self._number is not None:
                raise
            self._may_maintain = False  # consumers do it

    def _look(self) -> None:
        """Do what is due, and clean up behind dead links.  Within a call."""
        session, queues, number = self.session, self._queues, self._number
        own = number or 0  # no link's
        seconds, has_ended, owners = messages.survey(session, own, self.owner)
        is_due = seconds is not None and seconds <= 0
        if is_due or has_ended:
            ready = messages.release_due(session) | messages.release_expired(session, own)
            self._followed.add(announce(session, ready, self.owner))
        queues.remove_links(queues.dead_owners(owners))
        if is_due:
            queues.drop_idle()
            # A link that only publishes holds nothing: consumers dead-letter what has expired.
            dead = messages.take_dead(session, number, queues) if number is not None else ()
            if dead:
                self.died(dead)
            seconds = messages.next_due(session)
        if monotonic() - self._pruned_at > self.lease:
            self._pruned_at = monotonic()
            messages.delete_orphans(session)
        self._look_for_messages()
        self._schedule(seconds)

    def _look_again(self) -> None:
        self._look_for_messages()
        self._schedule(messages.next_due(self.session))

    def _look_for_messages(self) -> None:
        """See to the queues that are consumed here.  Within a call."""
        if not self._consumed:
            return
        ready, gone = self._queues.consumed(self._consumed)
        for number in gone:
            self.gone(self._forget(number))
        for number in ready:
            self.wake(self._consumed.get(number, ""))

    def _forget(self, number: int) -> str:
        name = self._consumed.pop(number)
        self._numbers.pop(name, None)
        for each in (self._single, self._active, self._dry, self._armed):
            each.discard(number)
        if not self._consumed:
            self._polls.stop()
        return name

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        return self.session.call(self._make_queue, name, declaration)

    def _make_queue(self, name: str, declaration: Declaration) -> Declaration:
        if declaration.owner is not None:
            self._register()
            self._has_entities = True
        made = self._queues.make(name, declaration)
        self._schedule(made.policy.expires)
        return made

    def find_queue(self, name: str) -> Declaration | None:
        return self._queues.look_up(name)

    def queue_names(self) -> Collection[str]:
        return self.session.call(self._queues.names)

    def drop_queue(self, name: str) -> int:
        count = self.session.call(self._queues.drop, name)
        if name in self._numbers:
            self._forget(self._numbers[name])
        return count

    def set_consumers(self, name: str, consumers: int, *, exclusive: bool = False) -> bool:
        if not consumers:
            self.session.call(self._leave_queue, name)
            return True
        return self.session.call(self._consume, name, consumers, exclusive)

    def _consume(self, name: str, consumers: int, exclusive: bool) -> bool:
        self._register()
        row, is_accepted, due_in = self._queues.consume(name, consumers, exclusive)
        if not is_accepted and self._queues.remove_dead_rivals(name):
            row, is_accepted, due_in = self._queues.consume(name, consumers, exclusive)
        if not is_accepted:
            return False
        if name in self._numbers:
            self._forget(self._numbers[name])
        if row is not None:
            self._has_entities = True
            self._consumed[row.id] = name
            self._numbers[name] = row.id
            if row.policy.is_single_active:
                self._single.add(row.id)
            if self.session.is_pooled and self._is_open:
                self._polls.start()
            self._schedule(due_in)
        return True

    def _leave_queue(self, name: str) -> None:
        if self._number is None:
            return
        row = self._queues.leave(name)
        if name in self._numbers:
            self._forget(self._numbers[name])
        if row is not None:
            self._schedule(row.policy.expires)

    def other_consumers(self, name: str) -> int:
        return self.session.call(self._queues.other_consumers, name)

    def purge(self, name: str) -> int:
        return self.session.call(self._queues.purge, name)

    def size(self, name: str) -> int:
        return self.counts([name])[name][0]

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        return self.session.call(self._queues.counts, names)

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        return self.session.call(self._put, entries)

    def _put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        stored = messages.put(self.session, self._queues, entries, self._register, self.owner)
        self._after(stored)
        return stored.outcomes

    def _after(self, stored: messages.PutResult) -> None:
        others = announce(self.session, stored.numbers, self.owner, stored.due_in) or stored.others
        if others:
            self._followed.add(others)
        if stored.dead:
            self.died(stored.dead)
        self._schedule(stored.due_in)
        if self._number is None and self._timer is None and self._may_maintain:
            # Where no process consumes any more, a publisher finds what killed consumers have left.
            self._schedule(self.lease)

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        return self.session.call(self._claim, wanted)

    def _claim(self, asked: Mapping[str, int]) -> list[Claimed]:
        wanted = {
            self._numbers[name]: most for name, most in asked.items() if name in self._numbers
        }
        if not wanted:  # they were deleted meanwhile, or it is ``basic_get``
            return self._get(*asked) if len(asked) == 1 else []
        if self.session.is_pooled:
            return self._take(wanted)
        dry = wanted.keys() & self._dry
        self._arm(dry)
        claimed = self._take(wanted)
        full = [each for each in dry if wanted[each] <= 0]
        if full:
            self._armed.difference_update(full)
            self._followed.add(disarm(self.session, full, self.owner))
        # Once more, behind their arming: what is stored from then on notifies.
        unarmed = {
            each: most for each, most in wanted.items() if most > 0 and each not in self._armed
        }
        if unarmed:
            self._arm(unarmed.keys())
            claimed += self._take(unarmed)
            wanted.update(unarmed)
        for each, most in wanted.items():
            if most > 0:
                self._dry.add(each)
            else:
                self._dry.discard(each)
        return claimed

    def _arm(self, numbers: Collection[int]) -> None:
        unarmed = set(numbers).difference(self._armed)
        if unarmed:
            # First: a notification takes them off again, and may come before the reply.
            self._armed |= unarmed
            try:
                arm(self.session, unarmed, self.owner)
            except BaseException:
                self._armed -= unarmed
                raise

    def _take(self, wanted: dict[int, int]) -> list[Claimed]:
        """Claim messages, and take them off what is wanted."""
        asked = dict(wanted)
        single = wanted.keys() & self._single
        if single:
            for each in single - self._active_of(single):
                del asked[each]
        if not asked:
            return []
        numbers = {self._consumed[number]: number for number in asked}
        holder, active = self._register(), asked.keys() & single
        if active:
            claimed = messages.claim_active(
                self.session, asked, holder, self._queues, active, self.owner
            )
        else:
            claimed = messages.claim(self.session, asked, holder, self._queues)
        for message in claimed:
            if message.dead is None:
                wanted[numbers[message.queue]] -= 1
        return claimed

    def _active_of(self, single: Collection[int]) -> set[int]:
        """Return those of some queues whose single active consumer is here.

        One that becomes it waits until what a dead one held is back: it is older.
        """
        firsts = self._queues.firsts(single)
        self._active -= set(single) - firsts
        if new := firsts - self._active:
            self._active |= new - messages.held_by_dead(self.session, new, self._register())
        return firsts & self._active

    def _get(self, name: str) -> list[Claimed]:
        session, queues, number = self.session, self._queues, self._register()
        got = messages.get(session, queues, name, number)
        if got.row is None:
            return []
        queues.touch(got.row)
        if got.is_due:
            # A program that only gets has no timer.
            ready = messages.release_due(session) | messages.release_expired(session, number)
            self._followed.add(announce(session, ready, self.owner))
            if got.row.id in ready:
                got = messages.get(session, queues, name, number)
        return got.claimed

    def unconfirmed_claims(self) -> Sequence[tuple[str, Any]]:
        if self._number is None:
            return ()
        return [("", messages.Handle(messages.EVERYTHING, self._number))]

    def settle(self, requests: Sequence[SettleRequest]) -> int | None:
        # What the server cannot do now it does later.  Given up, the messages would stay held as long
        # as this link lives.
        is_logged = False
        for attempt in attempts(SETTLING, is_retryable=lambda exc: isinstance(exc, NotStored)):
            with attempt:
                return self.session.call(self._settle, requests)
            if not is_logged:
                is_logged = True
                text = "acks and requeues are tried again: %s"
                logger.error(text, attempt.error, extra={"connection": self.client.as_uri()})
        raise AssertionError("unreachable")

    def _settle(self, requests: Sequence[SettleRequest]) -> int:
        if self.leaving:
            gone = self.leaving.intersection([request.handle for request in requests])
            self.leaving -= gone
            requests = [request for request in requests if request.handle not in gone]
            if not requests:
                return 0
        settled = messages.settle(self.session, self._queues, requests, self._register, self.lease)
        for queue, error in settled.refused:
            self.log_refusal(queue, error)
        self._after(settled)
        return settled.late

    def is_held(self, handle: messages.Handle) -> bool:
        """Return whether a message is held, when no transaction deletes it any more.  May switch."""
        return self.session.call(messages.is_held, self.session, handle)

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        if self._number is None and not handles:
            return ()
        return self.session.call(self._renew, handles, is_first=True)

    def _renew(self, handles: Sequence[messages.Handle]) -> Sequence[messages.Handle]:
        session, number = self.session, self._number
        if number is not None and not renew_links(session, [number], self.lease):
            if self._has_entities:
                raise LeaseExpired
            # What it held is requeued: it goes on under another number.
            deregister(session, number)
            self._number = None
        lost = messages.lost(session, handles) if handles else []
        # Meanwhile a transaction may have been committed, whose reply is still on its way.
        lost = [handle for handle in lost if handle not in self.leaving]
        self._maintenance.start()
        return lost
