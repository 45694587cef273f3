"""``greenconn doctor``: what is wrong between this machine and a broker, and what to do."""

from __future__ import annotations

import json
import platform
import resource
import shutil
import subprocess  # nothing else runs meanwhile, and gevent's takes the ends of all children
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from statistics import median
from textwrap import wrap
from time import monotonic, perf_counter, time
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click
import gevent
from gevent import get_hub, monkey
from gevent.socket import SOCK_STREAM, getaddrinfo
from redis.exceptions import RedisError

from greenconn.cli import timeout_option, url_argument
from greenconn.cli.broker import connection_to, error_line, interruptible, product_of, round_trip
from greenconn.cli.terminal import ACCENT, ATTENTION
from greenconn.connection import Connection
from greenconn.exceptions import AccessRefused, ManagementError, OperationalError
from greenconn.green.deadline import Deadline
from greenconn.green.stream import Stream, connect_tcp, numeric
from greenconn.url import mask_secrets, maybe_sanitize_url
from greenconn.wire.tls import TlsSession, tls_session

if TYPE_CHECKING:
    from greenconn.transport.postgresql.connection import Session

#: Before a remedy.
ARROW: Final = "-> "
#: Outcome -> colour.
COLOURS: Final = {"ok": ACCENT, "note": None, "warning": ATTENTION, "failed": "red"}
#: Outcomes that stand out.
BOLD: Final = frozenset({"warning", "failed"})
#: Width of the outcome, and of the name of a check.
OUTCOME: Final = 9
CHECK: Final = 14
#: Packages whose versions matter.
PACKAGES: Final = ("greenconn", "gevent", "greenlet", "amqp", "redis", "hiredis", "psycopg")
#: Descriptors that a program with a pool or two should be allowed.
DESCRIPTORS: Final = 1024
#: Naps of the hub that are measured, and the seconds of each.
NAPS: Final = 20
NAP: Final = 0.005
#: Seconds that a timer may be late.
LATE: Final = 0.1
#: Days before its end at which a certificate is to be renewed.
RENEWED: Final = 30
#: Round trips that are measured.
TRIPS: Final = 5
#: Seconds of a round trip from which on it is worth a word.
SLOW: Final = 0.1
#: Part of a limit from which on it is close.
CLOSE: Final = 0.8
#: HTTP status of what the user may not see.
FORBIDDEN: Final = 403
#: Alarms of a node -> what to do; the broker takes no messages while one is raised.
ALARMS: Final = {
    "mem_alarm": ("memory", "consume, add memory, or raise vm_memory_high_watermark"),
    "disk_free_alarm": ("disk", "free some of its disk, or consume"),
}
#: Seconds by which the clocks may differ.
SKEW: Final = 2.0
#: Seconds of a transaction from which on it is worth a word, and transactions that are shown.
LONG: Final = 60.0
SHOWN: Final = 5
#: Waiting messages of a queue from which on it should have a consumer, and those that are counted.
MANY: Final = 100
COUNTED: Final = 10_000
#: Dead rows, in multiples of those at which a vacuum is due.
BEHIND: Final = 10
#: Where there is no dead-letter exchange.
REMEDY: Final = "declare it with dead_letter=True, or set a policy with dead-letter-exchange"
#: The delivery limit of a quorum queue that has none set, from RabbitMQ 4.0 on.
DELIVERY_LIMIT: Final = 20

#: Seconds for the import of an application.
IMPORT_TIMEOUT: Final = 60.0
#: Modules that one finding names.
NAMED: Final = 5
#: Imports a module first of all, whatever it prints, and prints what it holds of the time before the
#: patch.
_IMPORTING: Final = """
import os, sys
output = os.dup(1)
os.dup2(2, 1)
sys.path.insert(0, os.getcwd())
import importlib
importlib.import_module(sys.argv[1])
import json
from gevent import monkey
from greenconn.debug import find_unpatched
is_patched = any(map(monkey.is_module_patched, ("socket", "threading", "time")))
os.write(output, json.dumps([is_patched, find_unpatched()]).encode())
os._exit(0)
"""


@click.command("doctor")
@url_argument
@click.option(
    "-q", "--queue", "queues", multiple=True, help="Check this queue, too.  (Repeatable.)"
)
@click.option(
    "-a",
    "--app",
    "application",
    metavar="MODULE[:APP]",
    help="Import this module in a process of its own, and check whether it patches too late.",
)
@click.option("--read-only", is_flag=True, help="Declare no queue, and send no message.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
@timeout_option
def doctor(
    url: str,
    queues: tuple[str, ...],
    application: str | None,
    read_only: bool,
    is_json: bool,
    strict: bool,
    timeout: float,
) -> int:
    """Check this machine, the way to the broker at URL, and the broker.

    A line each: what was looked at, what was seen, and what to do.  Exits with 1 when something failed.

    \b
    Example:
      greenconn doctor amqp://guest:guest@localhost:5672// --queue mail
      greenconn doctor "amqp://one;amqp://two" --json
      greenconn doctor --app shop.tasks
    """
    found: list[tuple[str, list[Finding]]] = []
    with interruptible():
        found.append(("this machine", _shown(check_process(), "this machine", is_json)))
        if application is not None:
            where = f"application {application}"
            found.append((where, _shown(check_patching(application), where, is_json)))
        for each in connection_to(url, timeout).alt or [url]:
            connection = connection_to(each, timeout)
            try:
                where = maybe_sanitize_url(each)
                checks = _check_broker(connection, queues, read_only, timeout)
                found.append((where, _shown(checks, where, is_json)))
            finally:
                connection.close()
    worst = {each.outcome for _, findings in found for each in findings}
    is_failed = Outcome.FAILED in worst or (strict and Outcome.WARNING in worst)
    if is_json:
        report = {where: [each.as_dict() for each in findings] for where, findings in found}
        click.echo(json.dumps({"ok": not is_failed, "checks": report}, ensure_ascii=False))
    return int(is_failed)


def _check_broker(
    connection: Connection, queues: tuple[str, ...], is_read_only: bool, timeout: float
) -> Iterator[Finding]:
    """Yield what is found of one broker, step by step: what fails ends it.  May switch."""
    transport = connection.transport
    port = connection.port or transport.default_connection_params.get("port")
    host = connection.hostname or transport.default_connection_params.get("hostname")
    if host and port and "/" not in host:
        is_reached = False
        for finding in check_network(host, port, connection.ssl, timeout):
            is_reached = is_reached or (finding.check == "TCP" and finding.outcome is Outcome.OK)
            yield finding
        if not is_reached:
            return
    for finding in check_session(connection):
        yield finding
        if finding.outcome is Outcome.FAILED:
            return
    if not is_read_only:
        yield from check_message(connection, timeout)
    if transport.driver_type == "amqp":
        yield from check_rabbitmq(connection)
    elif transport.driver_type == "redis":
        yield from check_redis(connection)
    elif transport.driver_type == "postgresql":
        yield from check_postgresql(connection)
    for name in queues:
        yield from check_queue(connection, name)


def _shown(findings: Iterator[Finding], where: str, is_json: bool) -> list[Finding]:
    """Print the findings as they come, unless it is for JSON, and return them.  May switch."""
    if is_json:
        return list(findings)
    width = max(60, min(shutil.get_terminal_size().columns, 120)) if sys.stdout.isatty() else None
    click.secho(where, bold=True)
    shown = []
    for each in findings:
        shown.append(each)
        for line in _lines(each, width):
            click.echo(line)
    click.echo()
    return shown


def _lines(finding: Finding, width: int | None) -> Iterator[str]:
    """Yield the lines of a finding; its remedy has one of its own.

    Arguments:
        width: columns of the terminal; None: no line is broken.
    """
    outcome = finding.outcome.value
    head = (
        click.style(f"  {outcome:{OUTCOME - 2}}", fg=COLOURS[outcome], bold=outcome in BOLD)
        + f" {finding.check:{CHECK}} "
    )
    margin = " " * (OUTCOME + 1 + CHECK + 1)
    for number, text in enumerate((finding.text, finding.remedy)):
        mark = ARROW if number else ""
        room = width and width - len(margin) - len(mark)
        parts = wrap(text, room) if room and text else [text] if text else []
        for index, part in enumerate(parts):
            begin = margin if number or index else head
            yield begin + (" " * len(mark) if index else mark) + part


class Outcome(Enum):
    """The kinds of findings, from good to bad."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was looked at, in a word or two.
        text: what was seen.
        remedy: what to do; empty where nothing is to be done.
    """

    check: str
    outcome: Outcome
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a dict that JSON can hold."""
        return {**asdict(self), "outcome": self.outcome.value}


def ok(check: str, text: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(check, Outcome.OK, text)


def note(check: str, text: str, remedy: str = "") -> Finding:
    """Return a finding that may be meant so."""
    return Finding(check, Outcome.NOTE, text, remedy)


def warning(check: str, text: str, remedy: str) -> Finding:
    """Return a finding that will cause trouble."""
    return Finding(check, Outcome.WARNING, text, remedy)


def failed(check: str, text: str, remedy: str = "") -> Finding:
    """Return a finding that keeps messages from passing."""
    return Finding(check, Outcome.FAILED, text, remedy)


def check_process() -> Iterator[Finding]:
    """Check versions, limits and timers.  May switch."""
    found = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    yield ok("versions", f"Python {platform.python_version()}, {found}")
    hub = get_hub()
    patched = "patched by gevent" if monkey.is_module_patched("socket") else "not patched"
    yield ok(
        "gevent", f"{type(hub.loop).__module__.rpartition('.')[2]}, {hub.loop.backend}, {patched}"
    )
    yield _check_descriptors()
    yield _check_timers()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_descriptors() -> Finding:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return ok("descriptors", "any number of files and sockets may be open")
    text = f"{allowed:,} files and sockets may be open"
    if allowed < DESCRIPTORS:
        return warning(
            "descriptors", text, "raise the limit (ulimit -n, or LimitNOFILE of systemd)"
        )
    return ok("descriptors", text)


def _check_timers() -> Finding:
    late = 0.0
    for _ in range(NAPS):
        began = monotonic()
        gevent.sleep(NAP)
        late = max(late, monotonic() - began - NAP)
    text = f"late by {late * 1e3:.1f} ms at worst"
    if late > LATE:
        return note("timers", text, "this machine has too little CPU time for its work")
    return ok("timers", text)


def check_patching(application: str) -> Iterator[Finding]:
    """Check what a module, and what it imports, hold of the time before the monkey patch.  May switch.

    A process of its own imports it: this one has imported much before.

    Arguments:
        application: the module, as ``greenconn run`` takes it.
    """
    module = application.partition(":")[0]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTING, module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield failed(
            "import", f"{module} was not imported within {IMPORT_TIMEOUT:g} s", "see where it waits"
        )
        return
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        yield failed("import", mask_secrets(lines[-1] if lines else f"exit code {done.returncode}"))
        return
    is_patched, late = json.loads(done.stdout)
    if not is_patched:
        yield note(
            "patching",
            f"{module} does not patch the standard library",
            "greenconn run and gunicorn's gevent workers do; elsewhere only greenconn waits greenly",
        )
        return
    if not late:
        yield ok("patching", f"{module} patches the standard library before what it affects")
    modules: dict[tuple[str, str], list[str]] = {}
    for name, original, effect in late:
        modules.setdefault((original, effect), []).append(name)
    own = module.partition(".")[0]
    for (original, effect), names in modules.items():
        names.sort(key=lambda name: name.partition(".")[0] != own)
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield warning(
            "patching",
            f"{', '.join(names[:NAMED])}{more} had {original} before the patch: {effect}",
            f"call gevent.monkey.patch_all() before the import of "
            f"{', '.join(sorted({each.partition('.')[0] for each in names}))}",
        )


def check_network(host: str, port: int, ssl: Any, timeout: float) -> Iterator[Finding]:
    """Check that a host can be reached.  May switch.

    Arguments:
        ssl: as a connection takes it; false: there is no TLS.
        timeout: seconds for each step.
    """
    if _is_address(host):
        addresses = [host]
    else:
        addresses, finding = _resolved(host, port, timeout)
        yield finding
    reached = None
    for address in addresses:
        began = monotonic()
        try:
            sock = connect_tcp(address, port, Deadline(timeout))
        except OSError as exc:
            yield failed("TCP", error_line(exc)[0])
            continue
        sock.close()
        reached = address
        yield ok("TCP", f"{address} port {port} accepts in {(monotonic() - began) * 1e3:.1f} ms")
    if reached is None:
        return
    if ssl:
        yield from _check_tls(host, reached, port, ssl, timeout)
    elif not ip_address(reached.partition("%")[0]).is_loopback:  # without the zone of IPv6
        yield warning(
            "TLS", "login and messages pass as plain text", "use TLS where others see the network"
        )


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _resolved(host: str, port: int, timeout: float) -> tuple[list[str], Finding]:
    """Return the addresses of a name, and what there is to say of it."""
    began = monotonic()
    try:
        with gevent.Timeout(timeout, TimeoutError(f"no answer within {timeout:g} s")):
            found = getaddrinfo(numeric(host), port, type=SOCK_STREAM)
    except OSError as exc:
        text = f"{host}: {error_line(exc)[0]}"
        return [], failed("name", text, "check the host in the URL, and the name server")
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    text = f"{host} is {', '.join(addresses)} ({(monotonic() - began) * 1e3:.1f} ms)"
    return addresses, ok("name", text)


def _check_tls(host: str, address: str, port: int, ssl: Any, timeout: float) -> Iterator[Finding]:
    try:
        session = tls_session(ssl, host)
        _shake_hands(session, address, port, timeout)
    except (OSError, ValueError) as exc:
        yield failed("TLS", error_line(exc)[0])
        return
    yield ok("TLS", f"{session.version}, {session.cipher}")
    certificate = session.peer_certificate
    if not certificate:
        yield warning(
            "certificate",
            "it is not verified: any host may answer in the name of the broker",
            "leave out cert_reqs, and name the authority that signed it with ca_certs",
        )
        return
    yield _check_end(certificate)


def _shake_hands(session: TlsSession, address: str, port: int, timeout: float) -> None:
    deadline = Deadline(timeout)
    sock = connect_tcp(address, port, deadline)
    stream = Stream(sock, _ignore, _ignore, f"{address}:{port}", session)
    try:
        stream.handshake(deadline)
    finally:
        stream.close()


def _ignore(anything: object) -> None:
    """Take what the peer sends, or the loss of the stream."""


def _check_end(certificate: dict[str, Any]) -> Finding:
    names = [name for field in certificate.get("subject", ()) for key, name in field]
    subject = ", ".join(names) or "no subject"
    end = parsedate_to_datetime(certificate["notAfter"])
    days = (end - datetime.now(timezone.utc)).days
    text = f"{subject}: verified, ends in {days:,} days ({end:%Y-%m-%d})"
    if days < RENEWED:
        return warning("certificate", text, "renew it on the broker")
    return ok("certificate", text)


def check_session(connection: Connection) -> Iterator[Finding]:
    """Open *connection*, and check what was agreed upon.  May switch.  It stays open if it can be."""
    began = perf_counter()
    try:
        connection.connect()
    except Exception as exc:
        yield failed("login", error_line(exc)[0])
        return
    link = connection.connection
    opened = (perf_counter() - began) * 1e3
    yield ok("login", f"{product_of(connection)}, open in {opened:.1f} ms")
    if (heartbeat := getattr(link, "heartbeat", None)) is not None:
        yield _check_heartbeat(heartbeat)
    times = [round_trip(connection) for _ in range(TRIPS)]
    text = f"{median(times) * 1e3:.2f} ms median, {max(times) * 1e3:.2f} ms at worst"
    if max(times) > SLOW:
        yield note("round trip", text, "the way is long, or the broker has too much to do")
    else:
        yield ok("round trip", text)


def _check_heartbeat(seconds: float) -> Finding:
    if not seconds:
        return warning(
            "heartbeat",
            "off: a broker that dies silently is not noticed until TCP gives up",
            "leave out heartbeat=0 in the URL, or the setting in the broker",
        )
    return ok("heartbeat", f"every {seconds:g} s")


def check_message(connection: Connection, timeout: float) -> Iterator[Finding]:
    """Check that a message passes through a queue of its own, which is deleted.  May switch."""
    name = f"greenconn-doctor-{uuid4().hex}"
    began = perf_counter()
    step = "declare"
    try:
        with connection.channel() as channel:
            channel.queue_declare(name, durable=False, exclusive=True, auto_delete=True)
            step = "publish to"
            prepared = channel.prepare_message(b"doctor")
            channel.basic_publish(prepared, exchange="", routing_key=name, timeout=timeout)
            step = "read"
            got = channel.basic_get(name, no_ack=True)
            step = "delete"
            channel.queue_delete(name)
    except AccessRefused as exc:
        yield warning(
            "message",
            f"this user may not {step} a queue of its own: {error_line(exc)[0]}",
            "nothing is wrong if others declare its queues; else set its permissions",
        )
        return
    except Exception as exc:
        yield failed("message", f"cannot {step} a queue: {error_line(exc)[0]}")
        return
    if got is None:
        yield failed("message", "one that was published did not come back")
        return
    passed = (perf_counter() - began) * 1e3
    yield ok("message", f"passed through a queue of its own in {passed:.1f} ms")


def check_rabbitmq(connection: Connection) -> Iterator[Finding]:
    """Check nodes and alarms.  May switch."""
    manager = connection.get_manager()
    try:
        overview = manager.get_overview()
        yield ok("management", f"cluster {overview.get('cluster_name', '?')} answers")
        nodes = manager.get_nodes()
    except ManagementError as exc:
        if exc.code != FORBIDDEN:
            yield note("management", error_line(exc)[0], "check its user and password")
            return
        yield note(
            "management",
            "this user may not see the nodes: alarms and limits were not checked",
            "give it the tag 'monitoring'",
        )
        return
    except OperationalError as exc:
        yield note(
            "management",
            f"no answer ({error_line(exc.__cause__ or exc)[0]}): alarms, nodes and queues were not "
            f"checked",
            "enable the plugin rabbitmq_management, or name its port with ?manager_port=",
        )
        return
    for node in nodes:
        yield from _check_node(node)


def _check_node(node: Mapping[str, Any]) -> Iterator[Finding]:
    name = str(node.get("name", "?"))
    if not node.get("running", True):
        yield failed("node", f"{name} is not running", "start it: queues without it may not answer")
        return
    alarms = [each for each in ALARMS if node.get(each)]
    for each in alarms:
        what, remedy = ALARMS[each]
        yield failed("alarm", f"{name}: its {what} alarm blocks all publishers", remedy)
    if node.get("partitions"):
        others = ", ".join(node["partitions"])
        yield failed("partition", f"{name} does not see {others}", "join the nodes again")
    if not alarms:
        yield ok("node", f"{name} runs, without alarms")
    for used, limit, what in (
        ("mem_used", "mem_limit", "bytes of memory"),
        ("fd_used", "fd_total", "descriptors"),
        ("proc_used", "proc_total", "Erlang processes"),
    ):
        have, most = node.get(used) or 0, node.get(limit) or 0
        if isinstance(most, int) and most and have > CLOSE * most:
            text = f"{name} uses {have:,} of {most:,} {what}"
            yield warning("limits", text, "raise the limit, or lessen the load")


def check_redis(connection: Connection) -> Iterator[Finding]:
    """Check what decides whether messages are kept.  May switch."""
    client = getattr(connection.default_channel, "client", None)
    if client is None:
        return
    try:
        info = client.info()
        began = time()
        seconds, microseconds = client.time()
        now = (began + time()) / 2
    except (RedisError, OSError) as exc:
        yield note("server", f"not checked: {error_line(exc)[0]}", "let the user run INFO and TIME")
        return
    name, version = (
        ("Valkey", "valkey_version") if "valkey_version" in info else ("Redis", "redis_version")
    )
    yield ok("server", f"{name} {info.get(version, '?')}")
    yield from _check_memory(info)
    yield from _check_persistence(info, _setting(client, "appendfsync"))
    yield from _check_role(info)
    yield _check_clock(float(seconds) + float(microseconds) / 1e6 - now)


def _check_memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    policy = str(info.get("maxmemory_policy") or "noeviction")
    if policy != "noeviction":
        yield warning(
            "eviction",
            f"maxmemory-policy is {policy}: full memory deletes queues with their messages",
            "set maxmemory-policy to noeviction",
        )
    else:
        yield ok("eviction", "off: no message is deleted for want of memory")
    if not most:
        yield note("memory", f"{used:,} bytes used, no limit", "set maxmemory below the machine's")
    elif used > CLOSE * most:
        text = f"{used:,} of {most:,} bytes used"
        yield warning("memory", text, "consume, or raise maxmemory: a full server takes nothing")
    else:
        yield ok("memory", f"{used:,} of {most:,} bytes used")


def _setting(client: Any, name: str) -> str:
    """Return a setting of a Redis; empty where the user may not see it.  May switch."""
    try:
        return str(client.config_get(name).get(name, ""))
    except RedisError:
        return ""


def _check_persistence(info: Mapping[str, Any], policy: str) -> Iterator[Finding]:
    """Check whether messages are on the disk.

    Arguments:
        policy: when the append-only file is written to it; empty if that is not known.
    """
    for field, what in (("aof_last_write_status", "AOF"), ("rdb_last_bgsave_status", "snapshot")):
        if str(info.get(field, "ok")) != "ok":
            yield failed(
                "persistence", f"the last {what} failed", "look at the server's log and disk"
            )
    if str(info.get("aof_enabled", "0")) == "1":
        text = "append-only file: what it has survives its restart"
        if policy in ("everysec", "no"):
            yield note(
                "persistence",
                f"{text}, but a power failure loses what came last (appendfsync {policy})",
                "set appendfsync to always where that matters",
            )
        else:
            yield ok("persistence", text)
    else:
        yield note(
            "persistence",
            "no append-only file: a crash loses what came since the last snapshot",
            "set appendonly to yes where messages matter",
        )


def _check_role(info: Mapping[str, Any]) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield failed("role", "it is a replica, which takes no messages", "name the master")
    else:
        yield ok("role", f"master with {int(info.get('connected_slaves') or 0)} replicas")


def _check_clock(skew: float) -> Finding:
    text = f"{abs(skew):.3f} s {'before' if skew > 0 else 'behind'} ours"
    if abs(skew) > SKEW:
        return warning("clock", text, "set both clocks by NTP: leases and delays go by them")
    return ok("clock", text)


def check_postgresql(connection: Connection) -> Iterator[Finding]:
    """Check what decides whether messages are kept, pass, and leave no garbage behind.  May switch."""
    from greenconn.transport.postgresql.messages import store_of

    session = store_of(connection.default_channel).session
    interval = connection.transport.options.polling_interval
    checks = (
        *(_check_primary, _check_durability, _check_schema, _check_rights, _check_connections),
        *(_check_transactions, _check_vacuum, _check_unconsumed),
    )
    if session.is_pooled:
        yield warning(
            "notifications",
            f"a pooler in between keeps no session: consumers look for messages every {interval:g} s",
            "use pool_mode = session, or connect to the server",
        )
    else:
        yield ok("notifications", "the session is kept: consumers are notified")
    for check in checks:
        try:
            yield from session.call(lambda check=check: list(check(session)))
        except Exception as exc:
            name = check.__name__.removeprefix("_check_")
            yield note(name, f"not checked: {error_line(exc)[0]}", "try again")
            if not session.is_open:
                return


def _check_primary(session: Session) -> Iterator[Finding]:
    ((version, count, names),) = session.fetch(
        "SELECT current_setting('server_version'), (SELECT count(*) FROM pg_stat_replication), "
        "current_setting('synchronous_standby_names')"
    )
    yield ok("server", f"PostgreSQL {version}")
    text = f"primary with {count} replica{'' if count == 1 else 's'}"
    if count and not names:
        yield note(
            "role",
            f"{text}, asynchronous: a failover loses what they have not received",
            "set synchronous_standby_names where messages matter",
        )
    else:
        yield ok("role", f"{text}, synchronous: {names}" if names else text)


def _check_durability(session: Session) -> Iterator[Finding]:
    ((fsync, commit),) = session.fetch(
        "SELECT current_setting('fsync'), current_setting('synchronous_commit')"
    )
    if fsync == "off":
        text = "fsync is off: a crash of the machine may lose all"
        yield warning("persistence", text, "set fsync to on")
    elif commit == "off":
        text = "synchronous_commit is off: a crash loses what was published just before"
        yield warning("persistence", text, "set synchronous_commit to on for this role")
    else:
        yield ok("persistence", f"a publish waits for the disk (synchronous_commit {commit})")


def _check_schema(session: Session) -> Iterator[Finding]:
    ((version,),) = session.fetch("SELECT max(version) FROM greenconn.migrations")
    yield ok("schema", f"{session.schema}, version {version}")


def _check_rights(session: Session) -> Iterator[Finding]:
    found = session.fetch(
        "SELECT c.relname::text, r, has_table_privilege(c.oid, r) FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        "CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS r "
        "WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname <> 'migrations'",
        (session.schema,),
    )
    missing = {(right, table) for table, right, has in found if not has}
    unpublished = sorted(
        (right, table)
        for right, table in missing
        if right == "SELECT" or (right, table) in {("INSERT", "messages"), ("UPDATE", "consumers")}
    )
    if unpublished:
        lacking = ", ".join(f"{right} on {table}" for right, table in unpublished)
        text = f"role {session.user} may not publish: it lacks {lacking}"
        yield failed("rights", text, "grant it these")
    elif missing:
        lacking = ", ".join(sorted({table for _, table in missing}))
        yield note(
            "rights",
            f"role {session.user} may publish, but neither declare nor consume: it lacks rights on "
            f"{lacking}",
            "nothing is wrong if it only publishes; else grant it INSERT, UPDATE and DELETE",
        )
    else:
        yield ok("rights", f"role {session.user} may publish, declare and consume")


def _check_connections(session: Session) -> Iterator[Finding]:
    ((used, most),) = session.fetch(
        "SELECT sum(numbackends)::int8, current_setting('max_connections')::int8 "
        "- current_setting('superuser_reserved_connections')::int8 FROM pg_stat_database"
    )
    text = f"{used:,} of {most:,} in use"
    if used > CLOSE * most:
        remedy = (
            "use fewer (one for each process is enough), raise max_connections, or use a pooler"
        )
        yield warning("connections", text, remedy)
    else:
        yield ok("connections", text)


def _check_transactions(session: Session) -> Iterator[Finding]:
    ((sees_all,),) = session.fetch("SELECT pg_has_role('pg_read_all_stats', 'USAGE')")
    found = session.fetch(
        "SELECT pid, usename::text, application_name, state, "
        "extract(epoch FROM clock_timestamp() - xact_start)::float8, age(backend_xmin)::int8 "
        "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND extract(epoch FROM clock_timestamp() - xact_start) >= %s ORDER BY xact_start LIMIT %s",
        (LONG, SHOWN),
    )
    for pid, role, application, state, seconds, age in found:
        held = "" if age is None else f", and holds vacuum back by {age:,} transactions"
        yield warning(
            "transactions",
            f"process {pid} (role {role}, application {application or '?'}, {state}) has a "
            f"transaction of {seconds:,.0f} s{held}",
            f"end it, or SELECT pg_terminate_backend({pid}); idle_in_transaction_session_timeout "
            f"ends those that were forgotten",
        )
    prepared = session.fetch(
        "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts "
        "WHERE database = current_database() "
        "AND extract(epoch FROM clock_timestamp() - prepared) >= %s ORDER BY prepared LIMIT %s",
        (LONG, SHOWN),
    )
    for gid, seconds in prepared:
        text = f"{gid!r} was prepared {seconds:,.0f} s ago, and holds vacuum back"
        yield warning("transactions", text, "COMMIT PREPARED or ROLLBACK PREPARED it")
    slots = session.fetch(
        "SELECT slot_name::text, age(xmin)::int8 FROM pg_replication_slots "
        "WHERE xmin IS NOT NULL AND NOT active ORDER BY 2 DESC LIMIT %s",
        (SHOWN,),
    )
    for name, age in slots:
        text = f"replication slot {name} is not used, and holds vacuum back by {age:,} transactions"
        yield warning(
            "transactions", text, "start its replica, or SELECT pg_drop_replication_slot of it"
        )
    if found or prepared or slots:
        return
    if sees_all:
        yield ok("transactions", f"none is older than {LONG:g} s")
    else:
        text = f"none of this role is older than {LONG:g} s; those of others cannot be seen"
        yield note("transactions", text, f"GRANT pg_monitor TO {session.user}")


def _check_vacuum(session: Session) -> Iterator[Finding]:
    found = session.fetch(
        "SELECT n_live_tup, n_dead_tup, to_char(greatest(last_autovacuum, last_vacuum), "
        "'YYYY-MM-DD HH24:MI'), current_setting('autovacuum') FROM pg_stat_user_tables "
        "WHERE schemaname = %s AND relname = 'messages'",
        (session.schema,),
    )
    for live, dead, last, is_on in found:
        text = f"messages has {live:,} rows and {dead:,} dead ones, vacuumed {last or 'never'}"
        if is_on == "off":
            yield warning("vacuum", f"autovacuum is off; {text}", "set autovacuum to on")
        elif dead > BEHIND * (1000 + live / 50):  # the settings of the table
            yield warning("vacuum", text, "end long transactions, or raise autovacuum_max_workers")
        else:
            yield ok("vacuum", text)


def _check_unconsumed(session: Session) -> Iterator[Finding]:
    found = session.fetch(
        "SELECT name, waiting.count FROM greenconn.queues q CROSS JOIN LATERAL (SELECT count(*) FROM "
        "(SELECT 1 FROM greenconn.messages WHERE queue = q.id AND holder IS NULL AND due IS NULL "
        "LIMIT %s) AS counted) AS waiting WHERE waiting.count >= %s AND NOT EXISTS (SELECT 1 "
        "FROM greenconn.consumers c JOIN greenconn.links l ON l.owner = c.owner "
        "WHERE c.queue = q.id AND l.lease_until > now()) ORDER BY 2 DESC, 1 LIMIT %s",
        (COUNTED, MANY, SHOWN),
    )
    for name, count in found:
        more = " or more" if count == COUNTED else ""
        yield warning(
            "queues",
            f"in {name!r} {count:,}{more} messages wait, and it has no consumer",
            "start one, or purge or delete the queue",
        )
    if not found:
        yield ok("queues", f"none has {MANY} waiting messages or more and no consumer")


def check_queue(connection: Connection, name: str) -> Iterator[Finding]:
    """Check queue *name*: it exists, is consumed, and keeps what fails.  May switch."""
    check = f"queue {name}"
    try:
        with connection.channel() as channel:
            found = channel.queue_declare(name, passive=True)
    except Exception as exc:
        yield failed(check, error_line(exc)[0])
        return
    waiting, consumers = found.message_count, found.consumer_count
    text = f"{waiting:,} messages wait, {consumers} consumers"
    if waiting and consumers == 0 and connection.transport.driver_type in ("amqp", "postgresql"):
        yield warning(check, text, "start a consumer")
    else:
        yield ok(check, text)
    if connection.transport.driver_type == "amqp":
        yield from _check_arguments(connection, name, check)


def _check_arguments(connection: Connection, name: str, check: str) -> Iterator[Finding]:
    try:
        found = connection.get_manager().get_queue(connection.virtual_host or "/", name)
    except (ManagementError, OperationalError):
        return  # what is known of the management API was said
    arguments: Mapping[str, Any] = found.get("arguments") or {}
    policy: Mapping[str, Any] = found.get("effective_policy_definition") or {}

    def value(argument: str) -> Any:
        given = arguments.get(f"x-{argument}")
        return policy.get(argument) if given is None else given

    kind = found.get("type", "classic")
    has_dead_letters = value("dead-letter-exchange") is not None
    version = getattr(connection.connection, "server_version", None) or (0, 0)
    if kind == "stream":
        yield ok(check, "a stream: messages stay until its limits")
        return
    if not found.get("durable", True):
        yield warning(check, "not durable: gone after a restart", "declare it durable")
    elif kind == "classic":
        if version < (4, 0):
            yield note(
                check, "classic: on one node", "a quorum queue survives the loss of its node"
            )
        else:
            yield note(
                check,
                "classic: on one node, which confirms messages before they are on its disk",
                "a quorum queue survives power failures and the loss of its node",
            )
    else:
        yield ok(check, f"{kind}, on {len(found.get('members') or ()) or 1} nodes")
    limit = value("delivery-limit")
    if has_dead_letters:
        yield ok(check, f"failed messages go to exchange {value('dead-letter-exchange')!r}")
        return
    if limit is None and kind == "quorum" and version >= (4, 0):
        limit = DELIVERY_LIMIT
    if limit is not None and int(limit) >= 0:
        yield warning(
            check,
            f"a message is dropped after {limit} failed deliveries: there is no dead-letter exchange",
            REMEDY,
        )
    else:
        yield note(
            check,
            "expired messages, and those that other clients reject, are dropped: it has no dead-letter "
            "exchange",
            REMEDY,
        )
