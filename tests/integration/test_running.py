"""``greenconn run``: an application in one process and in several, signals, reloads, failures."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import gevent
import pytest
from gevent import threadpool

import greenconn
from greenconn import Connection, Queue, rpc
from tests.brokers.ports import free_ports
from tests.fix_wires import until
from tests.integration.processes import ROOT, Outcome, Running, run, start

pytestmark = [pytest.mark.programs, pytest.mark.halved]

APPS = ROOT / "tests" / "integration" / "running_apps"
SOON = 90.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/queue.db"


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with Connection(url) as connection:
        yield connection


@pytest.fixture
def env(url: str) -> dict[str, str]:
    return {
        "GREENCONN_URL": url,
        "STEADY_QUEUE": "steady",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, APPS))),
    }


class Run:
    """A ``greenconn run``, and what it has printed so far."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.lines: list[str] = []

    def line(self, pattern: str) -> re.Match[str]:
        """Return the next line that *pattern* is found in.  May switch."""
        while True:
            self.lines.append(self.running.line(SOON))
            if match := re.search(pattern, self.lines[-1]):
                return match

    def ended(self) -> Outcome:
        """Wait for its end.  May switch."""
        return self.running.outcome(timeout=SOON)


@pytest.fixture
def runs(env: dict[str, str]) -> Iterator[Any]:
    """Call it with arguments of ``greenconn run``; log and output of what it starts are in one pipe."""
    begun: list[Running] = []

    def begin(*arguments: str, **further: str) -> Run:
        running = start(
            "-c",
            "import os, sys; os.dup2(1, 2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
            "-m",
            "greenconn",
            "run",
            *arguments,
            env={**env, **further},
        )
        begun.append(running)
        return Run(running)

    yield begin
    for each in begun:
        each.end()


def publish(connection: Connection, body: Any) -> None:
    greenconn.publish(Queue("steady"), body, connection=connection)


def test_one_process_until_it_is_told_to_stop(connection: Connection, runs: Any) -> None:
    run = runs("steady")
    run.line("<App: 2 consumers, the default connection> runs in process")
    publish(connection, {"id": 1, "seconds": 0.3})
    begun = run.line(r"^begun 1 (\d+)")
    run.running.signal(signal.SIGTERM)
    assert run.line(r"^handled 1 (\d+)")[1] == begun[1]  # it was let finish
    assert run.ended().code == 0
    publish(connection, {"id": 2})
    assert Queue("steady")(connection).get(no_ack=True).payload == {"id": 2}


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.full), 2])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.sampled(1)
def test_a_second_signal_interrupts(
    connection: Connection, runs: Any, second: signal.Signals, processes: int
) -> None:
    run = runs("steady:app", f"--processes={processes}")
    run.line("runs in process")
    publish(connection, {"id": 1, "seconds": 3600})
    run.line("^begun 1")
    run.running.signal(signal.SIGTERM)
    run.line("received SIGTERM: stopping")
    run.running.signal(second)
    assert run.ended().code == 1
    with gevent.Timeout(SOON):
        while (message := Queue("steady")(connection).get(no_ack=True)) is None:
            gevent.sleep(0.01)
    assert message.payload["id"] == 1


@pytest.mark.full
def test_a_signal_to_all_processes_interrupts_none(connection: Connection, runs: Any) -> None:
    run = runs("steady", "--processes=2")
    run.line("runs in process")
    publish(connection, {"id": 1, "seconds": 3})
    begun = run.line(r"^begun 1 (\d+)")
    # As systemd does; the manager passes its own on to them.
    os.kill(int(begun[1]), signal.SIGTERM)
    run.line("received SIGTERM: stopping")
    run.running.signal(signal.SIGTERM)
    assert run.line(r"^handled 1 (\d+)")[1] == begun[1]
    assert run.ended().code == 0


def test_processes_are_restarted_replaced_and_counted(connection: Connection, runs: Any) -> None:
    run = runs("steady", "--processes=2")
    first = {int(run.line(r"runs in process (\d+)")[1]) for _ in range(2)}
    assert len(first) == 2
    assert run.running.pid not in first
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    run.line(
        rf"process {victim} was killed by SIGKILL; another is started in"
    )  # 1 s if it lived for 10
    third = int(run.line(r"runs in process (\d+)")[1])
    run.running.signal(signal.SIGHUP)
    second = {int(run.line(r"runs in process (\d+)")[1]) for _ in range(2)}
    assert not second & {*first, third}
    run.running.signal(signal.SIGTTIN)
    added = int(run.line(r"runs in process (\d+)")[1])
    until(
        lambda: {call(connection) for _ in range(8)} <= {*second, added}, what="only the new ones"
    )
    run.running.signal(signal.SIGTTOU)
    until(lambda: not is_alive(added), what="the last one is stopped")
    publish(connection, {"id": 1, "seconds": 0.3})
    run.line("^begun 1")
    run.running.signal(signal.SIGINT)
    run.line("^handled 1")
    assert run.ended().code == 0
    assert not any(map(is_alive, second))


def call(connection: Connection) -> int:
    return int(rpc.call("steady-pid", None, connection=connection, timeout=SOON))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_stop_when_their_manager_is_killed(connection: Connection, runs: Any) -> None:
    run = runs("steady", "--processes=2")
    pids = [int(run.line(r"runs in process (\d+)")[1]) for _ in range(2)]
    run.running.signal(signal.SIGKILL)
    until(lambda: not any(map(is_alive, pids)), what="the processes have ended", timeout=SOON)


def test_a_changed_file_reloads_it(connection: Connection, runs: Any, tmp_path: Path) -> None:
    source = tmp_path / "changing.py"
    text = (APPS / "steady.py").read_text()
    source.write_text(text)
    run = runs("changing", "--reload", PYTHONPATH=f"{ROOT}:{tmp_path}")
    first = run.line(r"runs in process (\d+)")[1]
    replace(source, text.replace('"begun"', '"started"'))
    run.line("changing.py changed: reloading")
    assert run.line(r"runs in process (\d+)")[1] != first
    publish(connection, {"id": 1})
    run.line("^started 1")
    run.line("^handled 1")
    replace(source, text + "\nnonsense (")
    run.line("SyntaxError")
    run.line("waiting for a change of its files")
    replace(source, text)
    run.line("runs in process")
    publish(connection, {"id": 2})
    run.line("^handled 2")
    run.running.signal(signal.SIGTERM)
    assert run.ended().code == 0


def replace(source: Path, text: str) -> None:
    """Write *source* as an editor does, with a time that differs from the one before."""
    before = source.stat().st_mtime_ns
    new = source.with_suffix(".new")
    new.write_text(text)
    os.utime(new, ns=(before + 10**9, before + 10**9))
    new.replace(source)


def test_probes(runs: Any) -> None:
    (port,) = free_ports(1)
    run = runs("steady", f"--health=127.0.0.1:{port}")
    run.line(rf"health at http://127.0.0.1:{port}/health/ready")
    pool = threadpool.ThreadPool(1)  # so that it waits here, patched or not

    def ready() -> bool:
        return bool(pool.apply(get, (f"http://127.0.0.1:{port}/health/ready",)).get("ready"))

    until(ready, what="ready", timeout=SOON)
    pool.kill()
    run.running.signal(signal.SIGTERM)
    assert run.ended().code == 0


def test_a_stalled_consumer_is_reported(connection: Connection, runs: Any) -> None:
    run = runs("steady", "--stalled-after=1")
    run.line("runs in process")
    for number in range(200):  # more than the four handlers and their prefetch take
        publish(connection, {"id": number, "seconds": 3600})
    run.line("is stalled: nothing was delivered")
    run.running.signal(signal.SIGQUIT)
    run.ended()


def get(url: str) -> Any:
    try:
        with urlopen(url, timeout=SOON) as answer:
            return json.load(answer)
    except OSError:
        return {}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            "nowhere",
            "module 'nowhere' of application 'nowhere' was not found: run the command in the",
        ),
        ("steady:other", "module 'steady' has no application 'other'"),
        ("steady:QUEUE", "steady:QUEUE must be a greenconn.App, got 'steady'"),
        (":app", "application must be given as module:name, got ':app'"),
    ],
)
@pytest.mark.sampled(2)
def test_what_cannot_be_started(
    env: dict[str, str], target: str, text: str, processes: int
) -> None:
    outcome = run("-m", "greenconn", "run", target, f"--processes={processes}", env=env)
    assert outcome.code == 3
    assert text in outcome.errors
    assert "Traceback" not in outcome.errors


def test_without_a_name_it_lists_the_applications(env: dict[str, str], tmp_path: Path) -> None:
    program = "import os, sys; os.chdir(sys.argv[1]); os.execvp(sys.executable, sys.argv[2:])"
    command = ["-c", program, str(tmp_path), sys.executable, "-m", "greenconn", "run"]
    outcome = run(*command, env=env)
    assert outcome.code == 2
    assert "no file in this directory makes a greenconn.App" in outcome.errors
    (tmp_path / "mail.py").write_text("import greenconn\napp = greenconn.App()\n")
    (tmp_path / "shop.py").write_text("from greenconn import App\nworker = App()\n")
    outcome = run(*command, env=env)
    assert outcome.code == 2
    assert "missing argument 'MODULE[:APP]': found mail:app, shop:worker" in outcome.errors


def test_an_error_of_the_application_is_shown(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import greenconn\nimport a_module_that_is_not_there\n")
    env["PYTHONPATH"] += f":{tmp_path}"
    outcome = run("-m", "greenconn", "run", "broken", env=env)
    assert outcome.code == 3
    assert "No module named 'a_module_that_is_not_there'" in outcome.errors
    assert "broken.py" in outcome.errors


@pytest.mark.parametrize("address", ["nonsense", "host:port", "70000"])
def test_a_wrong_address_of_the_probes(env: dict[str, str], address: str) -> None:
    outcome = run("-m", "greenconn", "run", "steady", f"--health={address}", env=env)
    assert outcome.code == 2
    assert f"address must be a port, or host:port, got {address!r}" in outcome.errors


@pytest.mark.parametrize("processes", [1, 2])
def test_a_consumer_that_the_broker_refuses_ends_it(
    connection: Connection, runs: Any, tmp_path: Path, processes: int
) -> None:
    connection.default_channel.queue_declare("steady", durable=False)
    (tmp_path / "refused.py").write_text(
        "import greenconn\n"
        "app = greenconn.App()\n"
        "app.consumer(greenconn.Queue('steady', durable=True))(lambda body, message: None)\n"
    )
    run = runs("refused", f"--processes={processes}", PYTHONPATH=f"{ROOT}:{tmp_path}")
    run.line("consumer steady failed: stopping")
    if processes > 1:
        pid = run.running.process.pid
        run.line(rf" \[{pid}\] ERROR greenconn.running: the broker refused the consumers of all")
    ended = run.ended()
    assert ended.code == 1
    said = "\n".join(run.lines) + ended.output
    assert "Traceback" not in said  # as gevent prints that of a greenlet
    # Each process once, or once more if it came back before the other one had ended.
    assert said.count("consumer of queue steady failed: ") in {1: (1,), 2: (2, 3)}[processes]


@pytest.mark.full
def test_a_refused_process_is_started_again_while_another_one_serves(
    connection: Connection, runs: Any, tmp_path: Path
) -> None:
    (tmp_path / "partly.py").write_text(
        "import os, greenconn\n"
        "app = greenconn.App()\n"
        "first = os.environ['GREENCONN_PROCESS'] == '0'\n"
        "app.consumer('steady' if first else 'missing', passive=not first)(\n"
        "    lambda body, message: print('handled', flush=True)\n"
        ")\n"
    )
    run = runs("partly", "--processes=2", PYTHONPATH=f"{ROOT}:{tmp_path}")
    run.line("consuming steady: ")
    run.line("exited with 5; another is started in 2 s")
    publish(connection, 1)
    run.line("^handled")
    run.running.signal(signal.SIGTERM)
    assert run.ended().code == 0


def test_blocking_handlers_wait_side_by_side(
    connection: Connection, runs: Any, tmp_path: Path
) -> None:
    (tmp_path / "sleepy.py").write_text(
        "import time, greenconn\n"
        "app = greenconn.App()\n"
        "meeting = []\n"
        "@app.consumer('sleepy', concurrency=2)\n"
        "def handle(body, message):\n"
        "    meeting.append(body)\n"
        "    while len(meeting) < 2:\n"
        "        time.sleep(0.01)\n"
        "    print('met', body, flush=True)\n"
    )
    run = runs("sleepy", PYTHONPATH=f"{ROOT}:{tmp_path}")
    run.line("runs in process")
    for number in range(2):
        greenconn.publish(Queue("sleepy"), number, connection=connection)
    assert {run.line(r"^met (\d)")[1] for _ in range(2)} == {"0", "1"}
    run.running.signal(signal.SIGTERM)
    assert run.ended().code == 0


@pytest.mark.full
@pytest.mark.parametrize("signals", [["SIGHUP"], ["SIGTTOU", "SIGTTIN"]], ids="-".join)
@pytest.mark.sampled(1)
def test_a_process_takes_over_the_probes_of_one_whose_handler_runs(
    connection: Connection, runs: Any, signals: list[str]
) -> None:
    run = runs("steady", "--processes=2", "--health=127.0.0.1:0")
    urls = {run.line(r"health at (http://127.0.0.1:\d+/health/ready)")[1] for _ in range(2)}
    begun: set[int] = set()
    for _ in range(200):  # more than the four handlers of one and their prefetch take
        publish(connection, {"id": 1, "seconds": 3600})
    while len(begun) < 2:
        begun.add(int(run.line(r"^begun 1 (\d+)")[1]))
    run.running.signal(signal.Signals[signals[0]])
    run.line("received SIGTERM: stopping")
    for name in signals[1:]:
        run.running.signal(signal.Signals[name])
    # The new ones have the same ports, and the old ones are there yet.
    replaced = {run.line(r"health at (\S+)")[1] for _ in range(3 - len(signals))}
    assert replaced <= urls
    assert all(map(is_alive, begun))
    pool = threadpool.ThreadPool(1)

    def ready() -> bool:
        return all(pool.apply(get, (url,)).get("ready") for url in urls)

    until(ready, what="ready", timeout=SOON)
    assert all(ready() for _ in range(20))  # the old ones would say that they stop
    pool.kill()
    run.running.signal(signal.SIGQUIT)
    assert run.ended().code == 1


def test_the_port_of_a_removed_process_is_closed(runs: Any) -> None:
    run = runs("steady", "--processes=2", "--health=127.0.0.1:0")
    urls = {run.line(r"health at (http://127.0.0.1:\d+/health/ready)")[1] for _ in range(2)}
    pool = threadpool.ThreadPool(1)

    def answering() -> int:
        return sum(bool(pool.apply(get, (url,))) for url in urls)

    until(lambda: answering() == 2, what="both answer", timeout=SOON)
    run.running.signal(signal.SIGTTOU)
    until(lambda: answering() == 1, what="one is closed", timeout=SOON)
    pool.kill()
    run.running.signal(signal.SIGTERM)
    assert run.ended().code == 0


def test_a_port_of_the_probes_that_is_in_use(env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        for processes in (1, 2):
            outcome = run(
                *("-m", "greenconn", "run", "steady"),
                *(f"--health={address}", f"--processes={processes}"),
                env=env,
            )
            assert outcome.code == 3
            assert f"cannot listen for health probes at {address}: " in outcome.errors
            assert "Traceback" not in outcome.errors
