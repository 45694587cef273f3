"""Periodic calls at real brokers: one process of several makes them, and another one goes on."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

import greenconn
from greenconn import App
from greenconn.service.periodic import periodic_queue
from tests.fix_wires import until
from tests.integration.gunicorn import serving
from tests.integration.processes import ROOT, Running, start

pytestmark = pytest.mark.halved

CAME = 60.0
PERIOD = 0.5
LEASE = 4.0
#: By kind of option, for the workers of gunicorn: a busy machine may hold one up for longer than a lease
#: of 4 s, and another one repeats its calls then.
PATIENT: dict[str, Any] = {"heartbeat": 10, "transport_options": {"lease": 15.0}}
#: Seconds that the acknowledgement of a call may take on a busy machine.
UNTOLD = 2.0

#: Prints the time that each call was due, and its process.
PROGRAM = """
import json, os, sys
import greenconn

url, name, period, options = sys.argv[1:]
app = greenconn.App(url, **json.loads(options))

@app.around_handle
def due(message):
    print(message.payload["due"], os.getpid(), flush=True)
    yield

@app.every(float(period), name=name)
def tick():
    pass

app.start()
print("started", os.getpid(), flush=True)
app.consumers[0].get()
"""

#: The same, which stops at SIGTERM, and does not close its connection.
STOPPING = PROGRAM.replace(
    "app.consumers[0].get()",
    """
import gevent, signal
from gevent.event import Event

stopping = Event()
gevent.signal_handler(signal.SIGTERM, stopping.set)
stopping.wait()
app.stop(30.0)
""",
)

#: The same, whose calls never end.
ENDLESS = PROGRAM.replace("    pass", "    import gevent; gevent.sleep(3600)")

#: By kind: the fixture of the address, and what makes a dead process known soon.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "amqp": ("amqp_url", {"heartbeat": 2}),
    "redis": ("redis_url", {"transport_options": {"lease": LEASE}}),
    "sqlite": ("sqlite_url", {"transport_options": {"lease": LEASE}}),
    "mongodb": ("mongodb_url", {"transport_options": {"lease": LEASE}}),
    "couchdb": ("couchdb_url", {"transport_options": {"lease": LEASE}}),
    "beanstalk": ("beanstalk_url", {"transport_options": {"lease": LEASE}}),
    "redis+cluster": ("redis_cluster_url", {"transport_options": {"lease": LEASE}}),
}
QUICK = ("amqp",)
EACH = [
    pytest.param(kind, marks=() if kind in QUICK else pytest.mark.full, id=kind) for kind in KINDS
]


class Calls:
    """Processes with the same schedule, and the calls that they made."""

    def __init__(
        self, url: str, name: str, options: dict[str, Any], count: int, period: float, program: str
    ) -> None:
        self.processes: dict[int, Running] = {}
        #: Process and time, in the order in which they came here.
        self.made: list[tuple[int, float | None]] = []
        #: When they came here, and when a process was killed; for the message of a failure.
        self.events: list[str] = []
        self._program = program
        self._arguments = (url, name, str(period), json.dumps(options))
        self._readers: list[Any] = []
        self.add(count)

    def add(self, count: int = 1) -> None:
        """Start so many more, side by side."""
        env = {"PYTHONPATH": str(ROOT)}
        added = [start("-c", self._program, *self._arguments, env=env) for _ in range(count)]
        self.processes.update((running.pid, running) for running in added)
        for running in added:
            assert running.line(CAME).startswith("started")
            self._readers.append(gevent.spawn(self._read, running))

    def _read(self, running: Running) -> None:
        try:
            while True:
                due, pid = running.line().split()
                self.made.append((int(pid), None if due == "None" else float(due)))
                self.events.append(f"{time.time():.2f}: {pid} made the call of {due}")
        except (EOFError, ValueError, OSError):
            pass

    def wait_calls(self, count: int, *, without: int = 0) -> int:
        """Wait for so many calls more, and return the process of the last one.  May switch."""
        begin = len(self.made)

        def found() -> list[int]:
            return [pid for pid, _ in self.made[begin:] if pid != without]

        try:
            until(lambda: len(found()) >= count, CAME)
        except AssertionError:
            raise AssertionError(
                f"in {CAME} s there were no {count} calls without {without} after {begin} of {self.made}"
            ) from None
        return found()[-1]

    def kill(self, pid: int) -> None:
        """Kill a process."""
        os.kill(pid, signal.SIGKILL)
        self.events.append(f"{time.time():.2f}: {pid} was killed")

    def end(self) -> None:
        """End all."""
        gevent.killall(self._readers)
        for each in self.processes.values():
            each.end()


@pytest.fixture
def period() -> float:
    """Seconds between two calls; tests that need others have them as a parameter."""
    return PERIOD


@pytest.fixture
def lease() -> float:
    """Seconds after which a process that is silent is taken for dead."""
    return LEASE


@pytest.fixture
def program() -> str:
    """What each process runs."""
    return PROGRAM


@pytest.fixture
def calls(
    request: pytest.FixtureRequest,
    kind: str,
    unique: str,
    period: float,
    lease: float,
    program: str,
) -> Iterator[Calls]:
    fixture, options = KINDS[kind]
    if "transport_options" in options:
        options = {"transport_options": {"lease": lease}}
    made = Calls(request.getfixturevalue(fixture), unique, options, 3, period, program)
    yield made
    made.end()


def last_calls(made: Iterable[tuple[int, float | None]], process: int) -> set[float]:
    """Return the times of the last calls of a process.  It may not have told the broker of them yet."""
    times = {due for pid, due in made if pid == process and due is not None}
    return {due for due in times if due > max(times) - UNTOLD}


def repeated(calls: Calls, unended: Collection[float] = ()) -> list[float]:
    """Return the times whose calls were made more than once, twice for those in *unended*."""
    times = Counter(due for _, due in calls.made if due is not None)
    return [due for due, count in times.items() if count > 1 + (due in unended)]


@pytest.mark.programs
@pytest.mark.parametrize("kind", EACH)
def test_another_process_goes_on_when_the_leader_is_killed(calls: Calls) -> None:
    leaders = []
    for _ in range(2):
        leader = calls.wait_calls(3)
        at_once = {pid for pid, _ in calls.made[-3:]}
        assert at_once == {leader}  # one for all
        calls.kill(leader)
        leaders.append(leader)
        calls.wait_calls(1, without=leader)
    calls.wait_calls(3)
    assert len({*leaders, calls.made[-1][0]}) == 3
    unended = set().union(*(last_calls(calls.made, leader) for leader in leaders))
    assert repeated(calls, unended) == [], "\n".join(calls.events)
    # An interrupted call may be made again when the claim of its leader ends, after later ones.
    first_times = list(dict.fromkeys(due for _, due in calls.made if due is not None))
    assert first_times == sorted(first_times)


@pytest.mark.programs
@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("program", [pytest.param(ENDLESS, id="endless")])
@pytest.mark.parametrize(
    ("period", "lease"), [(12.0, 2.0)]
)  # the claim ends before the second call
def test_the_first_call_is_made_again_when_its_process_is_killed(calls: Calls) -> None:
    until(lambda: len(calls.made) == 1, CAME)
    os.kill(calls.made[0][0], signal.SIGKILL)
    until(lambda: len(calls.made) == 2, CAME)
    (first, due), (second, due_again) = calls.made
    assert first != second
    assert due == due_again is not None


@pytest.mark.programs
@pytest.mark.parametrize("period", [2.0])
@pytest.mark.parametrize("kind", [each for each in EACH if each.id != "beanstalk"])
@pytest.mark.full
def test_a_leader_that_was_stopped_does_not_call_when_it_goes_on(
    request: pytest.FixtureRequest, calls: Calls, kind: str
) -> None:
    # A server of beanstalk takes a process for living as long as its connection is there.
    while True:
        leader = calls.wait_calls(2)
        calls.processes[leader].suspend(request.getfixturevalue(KINDS[kind][0]))
        if time.time() < max(due for _, due in calls.made if due) + 1.0:
            break  # it was not between the question of the next call and that call
        os.kill(leader, signal.SIGCONT)  # this machine is slow
    calls.wait_calls(2, without=leader)
    made = len(calls.made)
    by_others = {due for pid, due in calls.made if pid != leader}
    os.kill(leader, signal.SIGCONT)
    calls.wait_calls(3)
    again = [due for pid, due in calls.made[made:] if pid == leader and due in by_others]
    assert again == [], calls.made


@pytest.mark.programs
@pytest.mark.parametrize("kind", EACH)
def test_a_leader_that_ends_leaves_the_rest_to_another(calls: Calls) -> None:
    leader = calls.wait_calls(2)
    calls.add()
    os.kill(leader, signal.SIGTERM)
    calls.wait_calls(3, without=leader)
    # The program does nothing at the signal: it may not have told the broker of its last call.
    assert repeated(calls, last_calls(calls.made, leader)) == []


@pytest.mark.programs
@pytest.mark.parametrize("kind", EACH)
@pytest.mark.parametrize("lease", [600.0])  # what was only left behind would come too late
@pytest.mark.parametrize("program", [pytest.param(STOPPING, id="stopping")])
def test_a_leader_that_stops_hands_over_at_once(calls: Calls) -> None:
    leader = calls.wait_calls(2)
    os.kill(leader, signal.SIGTERM)
    calls.wait_calls(3, without=leader)
    assert repeated(calls) == []


@pytest.fixture
def app(amqp_url: str) -> Iterator[App]:
    app = App(amqp_url)
    yield app
    assert app.stop(CAME)
    assert app.connection is not None
    app.connection.close()


def test_a_connection_that_is_closed_under_the_leader(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = App(sqlite_url)
    made: list[int] = []
    app.every(0.2)(lambda: made.append(1))
    app.start()
    until(lambda: bool(made))
    assert app.connection is not None
    app.connection.close()
    until(lambda: not app.consumers)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_a_deleted_queue_begins_anew(
    app: App, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is published for most of a period after a call.  RabbitMQ 3.10 may keep, and serve no
    # longer, the consumer of a quorum queue that is declared again the moment it was deleted.
    monkeypatch.setattr("greenconn.service.periodic.RENEWAL_INTERVAL", 2.0)
    monkeypatch.setattr("greenconn.service.periodic.LOOK", 0.1)
    made: list[int] = []
    app.every(0.8, name=unique)(lambda: made.append(1))
    app.start()
    until(lambda: len(made) >= 1)
    connection = app.connection
    assert connection is not None
    queue = periodic_queue(unique, connection)
    for _ in range(2):
        count = len(made)
        until(lambda: len(made) > count)  # noqa: B023 - it is called at once
        connection.default_channel.queue_delete(queue.name)
        until(lambda: len(made) >= count + 3)  # noqa: B023 - it is called at once


def test_a_lost_connection_is_recovered(app: App, unique: str) -> None:
    made: list[int] = []
    app.every(0.2, name=unique)(lambda: made.append(1))
    app.start()
    connection = app.connection
    assert connection is not None
    for _ in range(3):
        count = len(made)
        until(lambda: len(made) >= count + 2)  # noqa: B023 - it is called at once
        connection.session.life.link.end(ConnectionResetError("cut"))


@pytest.mark.parametrize("kind", ["amqp", "redis"])
def test_a_leader_whose_connection_ends_during_a_call(
    request: pytest.FixtureRequest, kind: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    fixture, options = KINDS[kind]
    apps = [App(request.getfixturevalue(fixture), **options) for _ in range(2)]
    made: list[int] = []
    over = Event()

    def call(number: int) -> None:
        made.append(number)
        over.wait(CAME)

    for number, app in enumerate(apps):
        app.every(0.5, name=unique)(partial(call, number))
        app.start()
        if kind == "amqp":  # the second one is next when the first loses its link
            assert app.wait_ready(CAME)
        until(lambda: bool(made), CAME)
    leader = made[0]
    connection = apps[leader].connection
    assert connection is not None
    connection.session.life.link.end(ConnectionResetError("cut"))
    if kind == "amqp":  # else the former leader may be the next one, too
        until(lambda: made == [leader, 1 - leader], CAME)
    over.set()
    until(lambda: len(made) >= 5, CAME)
    assert len(set(made[-2:])) == 1
    for app in apps:
        assert app.stop(CAME)
        assert app.connection is not None
        app.connection.close()
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_a_transport_that_elects_nobody(tmp_path: Path) -> None:
    app = App("SQS://")
    app.every(60, name="tick")(lambda: None)
    with pytest.raises(
        ValueError, match=r"transport 'sqs' cannot say which process .* use RabbitMQ"
    ):
        app.start()


def test_one_process_of_several_under_the_manager(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import os, greenconn\n"
        "app = greenconn.App()\n"
        "@app.every(0.5)\n"
        "def tick():\n"
        "    print('tick', os.getpid(), flush=True)\n"
    )
    env = {
        "GREENCONN_URL": f"sqlite:///{tmp_path}/queue.db",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))),
    }
    run = start("-m", "greenconn", "run", "shop", "--processes=3", env=env)
    try:
        pids = {run.line(CAME) for _ in range(6)}
        assert len(pids) == 1
        run.signal(signal.SIGTERM)
        assert run.outcome(timeout=CAME).code == 0
    finally:
        run.end()


#: Writes the time that each call was due, and its process, into a file.
SHOP = """
import json, os
import greenconn

app = greenconn.App(os.environ["SHOP_URL"], **json.loads(os.environ["SHOP_OPTIONS"]))

@app.around_handle
def due(message):
    with open(os.environ["SHOP_CALLS"], "a") as calls:
        print(message.payload["due"], os.getpid(), file=calls)
    yield

@app.every(float(os.environ["SHOP_PERIOD"]), name=os.environ["SHOP_NAME"])
def tick():
    pass

def application(environ, start_response):
    start_response("200 OK", [])
    return [b""]
"""
SHOP_CONF = """
import greenconn.contrib.gunicorn

globals().update(greenconn.contrib.gunicorn.hooks("shop:app"))
"""


@pytest.mark.full
@pytest.mark.programs
@pytest.mark.parametrize("kind", ["amqp", "redis", "sqlite", "mongodb"])
def test_one_worker_of_several_under_gunicorn(
    request: pytest.FixtureRequest, kind: str, unique: str, tmp_path: Path
) -> None:
    pytest.importorskip("gunicorn")
    fixture, options = KINDS[kind]
    options = {name: PATIENT[name] for name in options}
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "shop.conf.py").write_text(SHOP_CONF)
    path = tmp_path / "calls"
    path.touch()

    def made() -> list[tuple[int, float]]:
        lines = [line.split() for line in path.read_text().splitlines()]
        return [(int(pid), float(due)) for due, pid in lines if due != "None"]

    env = {
        "SHOP_URL": request.getfixturevalue(fixture),
        "SHOP_OPTIONS": json.dumps(options),
        "SHOP_CALLS": str(path),
        "SHOP_PERIOD": str(PERIOD),
        "SHOP_NAME": unique,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))),
    }
    with serving("--workers=3", "-c", str(tmp_path / "shop.conf.py"), "shop", env=env) as server:
        server.wait_ready("/", workers=3)
        killed: set[float] = set()
        former = 0
        for number in (signal.SIGKILL, signal.SIGTERM, None):
            begin = len(made())
            until(lambda: {pid for pid, _ in made()[begin:]} - {former}, CAME)  # noqa: B023
            first = len(made())
            until(lambda: len(made()) >= first + 3, CAME)  # noqa: B023
            (leader,) = {pid for pid, _ in made()[first:]}  # one for all
            assert leader in server.booted
            assert leader != former
            if number is not None:
                server.signal(number, leader)
            if number is signal.SIGKILL:
                # It may not have told the broker of its last call.
                until(lambda: leader not in server.living(), CAME)  # noqa: B023
                killed = last_calls(made(), leader)
            former = leader
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.log
    times = Counter(due for _, due in made())
    assert [due for due, count in times.items() if count > 1 + (due in killed)] == []


@pytest.mark.programs
def test_a_program_that_only_waits_for_its_calls() -> None:
    """Nothing else wakes it: neither a connection to a broker, nor a consumer."""
    program = start("-c", PROGRAM, "memory://", "tick", "0.2", "{}", env={"PYTHONPATH": str(ROOT)})
    try:
        assert program.line(CAME).startswith("started")
        for _ in range(3):
            assert program.line(CAME)
    finally:
        program.end()


def test_publishing_from_a_call(app: App, unique: str) -> None:
    queue = greenconn.Queue(unique)
    app.every(0.2, name=unique)(lambda: app.publish(queue, {"n": 1}, timeout=CAME))
    handled: list[Any] = []
    app.consumer(queue)(lambda body, message: handled.append(body))
    app.start()
    until(lambda: len(handled) >= 2)
    assert handled[:2] == [{"n": 1}, {"n": 1}]
