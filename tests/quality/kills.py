"""Processes that are killed while they publish and consume over PostgreSQL, and a ledger of it all.

``python -m tests.quality.kills --lives 10000 --terminations 1000 --restarts 100``

Each life is a child of a process that has imported everything, and has neither hub nor connections.
It connects, works for 20 to 300 ms, and gets SIGKILL; one of ten gets it while it connects.  There are
four kinds:

- a publisher, which notes what it begins, and what was confirmed;
- a consumer, which notes what it handles, and fails now and then;
- a program that publishes in its own transaction, with a row; every fourth transaction is rolled back;
- a consumer with a handler in a transaction, which writes a row.

Meanwhile sessions are terminated, and the server is killed and started again.  At the end everything
that is left is consumed.  Then each confirmed message was handled, none was handled that was not begun
or was rolled back, and each row of a committed transaction has one row of a handler.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from time import monotonic
from typing import Any, Final, NoReturn

import gevent
import psycopg
import sqlalchemy

import greenconn
from greenconn import Connection, Exchange, Message, Queue, Retry
from greenconn.exceptions import OperationalError

#: Seconds of a life, and those within which it must have begun.
SHORTEST: Final = 0.02
LONGEST: Final = 0.3
STARTING: Final = 5.0
#: Numbers that a life has for its messages.
NUMBERS: Final = 100_000
#: Greenlets of a life, and seconds for which each may pause.
GREENLETS: Final = 3
PAUSE: Final = 0.004
LEASE: Final = 2.0
#: Seconds that what is left may take.
DRAINING: Final = 300.0
#: Seconds between two terminated sessions.
BETWEEN: Final = 0.05
EXCHANGE: Final = Exchange("plain", type="topic")
PLAIN: Final = Queue("plain", EXCHANGE, routing_key="plain")
ORDERS: Final = Queue("orders")
RETRY: Final = Retry(tries=1000, delay=0.02)


class Work:
    """What one life does.

    Arguments:
        url: of the broker, and of the database that the program has.
        log: the ledger; each line is one write, which no kill undoes.
        seed: of everything that is left to chance.
        base: the first number of its messages.
    """

    def __init__(self, url: str, log: int, seed: str = "", base: int = 0) -> None:
        self._url = url
        self._log = log
        self._chance = random.Random(seed)
        self._numbers = count(base)
        self._connection = Connection(url, transport_options={"lease": LEASE})

    def connect(self) -> None:
        """Connect, as often as it takes.  May switch."""
        self._connection.ensure_connection(max_retries=None)

    def close(self) -> None:
        """Disconnect.  May switch."""
        self._connection.close()

    def _note(self, kind: str, *numbers: int) -> None:
        for number in numbers:
            os.write(self._log, f"{kind} {number}\n".encode())

    def _pause(self) -> None:
        gevent.sleep(self._chance.random() * PAUSE)

    # -- publishing

    def publish(self) -> None:
        """Publish in some greenlets.  May switch."""
        gevent.joinall([gevent.spawn(self._publish) for _ in range(GREENLETS)], raise_error=True)

    def _publish(self) -> None:
        connection = self._connection
        for number in self._numbers:
            numbers = [number]
            self._note("begun", number)
            with suppress(OperationalError):  # the server may have it
                way = self._chance.randrange(8)
                if way == 0:
                    numbers.append(next(self._numbers))
                    self._note("begun", numbers[1])
                    greenconn.publish_many("plain", numbers, connection=connection)
                elif way == 1:
                    greenconn.publish("plain", number, connection=connection, delay=0.05)
                elif way == 2:
                    greenconn.publish(EXCHANGE, number, routing_key="plain", connection=connection)
                else:
                    greenconn.publish("plain", number, connection=connection)
                self._note("confirmed", *numbers)
            self._pause()

    def transact(self) -> None:
        """Publish in transactions, each with a row.  May switch."""
        while True:
            with (
                suppress(psycopg.OperationalError, OperationalError),
                psycopg.connect(self._url) as program,
            ):
                for number in self._numbers:
                    is_undone = number % 4 == 0
                    if is_undone:
                        self._note("undone", number)
                    program.execute("INSERT INTO published VALUES (%s)", (number,))
                    greenconn.publish(
                        "orders", number, connection=self._connection, transaction=program
                    )
                    self._pause()
                    if is_undone:
                        program.rollback()
                    else:
                        program.commit()

    # -- consuming

    def consume(self) -> greenconn.ConsumerGreenlet:
        """Start a consumer.  Never switches."""
        return greenconn.spawn_consumer(
            "plain",
            self._handle,
            connection=self._connection,
            concurrency=GREENLETS,
            prefetch_count=10,
            retry=RETRY,
        )

    def _handle(self, body: int, message: Message) -> None:
        self._note("handled", body)
        self._pause()
        if self._chance.randrange(20) == 0:
            raise ValueError(body)

    def write(self) -> greenconn.ConsumerGreenlet:
        """Start a consumer with a handler in a transaction.  Never switches."""
        return greenconn.spawn_consumer(
            "orders",
            self._write,
            connection=self._connection,
            transaction=sqlalchemy.create_engine(self._url.replace("://", "+psycopg://")),
            concurrency=GREENLETS,
            retry=RETRY,
        )

    def _write(self, body: int, message: Message, session: Any) -> None:
        session.execute(sqlalchemy.text("INSERT INTO handled VALUES (:n)"), {"n": body})
        self._note("written", body)
        self._pause()
        if self._chance.randrange(20) == 0:
            raise ValueError(body)


#: What the lives do, in turn.
KINDS: Final[dict[str, Callable[[Work], Any]]] = {
    "publisher": Work.publish,
    "consumer": lambda work: work.consume().join(),
    "transaction": Work.transact,
    "handler": lambda work: work.write().join(),
}


# -- the process whose children are killed


class Zygote:
    """Forks, and kills.

    Arguments:
        lives: how many children there are to be.
        children: at once.
        longest: seconds of a life.
    """

    def __init__(
        self, url: str, path: str, seed: int, lives: int, children: int, longest: float
    ) -> None:
        self._url = url
        self._seed = seed
        self._lives = lives
        self._children = children
        self._longest = longest
        self._chance = random.Random(seed)
        self._log = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._ready, self._notice = os.pipe()
        #: Process -> when it is killed.
        self._ends: dict[int, float] = {}
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Have all lives, one after the other."""
        names = list(KINDS)
        for life in range(self._lives):
            while len(self._ends) >= self._children:
                self._kill_next()
            name = names[life % len(names)]
            self._begin(name, life)
            self.counts[name] += 1
        while self._ends:
            self._kill_next()

    def _begin(self, name: str, life: int) -> None:
        pid = os.fork()
        if not pid:
            self._live(name, life)
        # Some do not get as far as to be connected.
        seconds = self._chance.random() * 0.05 if self._chance.randrange(10) == 0 else STARTING
        self._ends[pid] = monotonic() + seconds

    def _live(self, name: str, life: int) -> NoReturn:
        try:
            logging.disable(logging.CRITICAL)
            work = Work(self._url, self._log, f"{self._seed}-{life}", (life + 1) * NUMBERS)
            work.connect()
            os.write(self._notice, f"{os.getpid():8d}".encode())
            KINDS[name](work)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _kill_next(self) -> None:
        """Wait for the next end, or the next one that is connected."""
        pid, end = min(self._ends.items(), key=lambda item: item[1])
        readable, _, _ = select.select([self._ready], (), (), max(0.0, end - monotonic()))
        if readable:
            pid = int(os.read(self._ready, 8))
            if pid in self._ends:
                seconds = self._chance.uniform(SHORTEST, self._longest)
                self._ends[pid] = min(self._ends[pid], monotonic() + seconds)
            return
        del self._ends[pid]
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            self.counts["killed"] += 1
        else:
            self.counts["ended"] += 1


# -- the process that has the server


class Outcome(dict[str, int]):
    """The figures, by name."""

    @property
    def is_right(self) -> bool:
        """Whether nothing is lost, invented or done twice, and no life ended by itself."""
        return not any(
            self[name] for name in ("lost", "phantom", "unwritten", "invented", "twice", "ended")
        )


@contextmanager
def zygote(url: str, path: str, options: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    """Start the process whose children are killed."""
    command = [sys.executable, "-m", "tests.quality.kills", "--url", url, "--path", path]
    for name in ("seed", "lives", "children", "longest"):
        command += [f"--{name}", str(getattr(options, name))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def storm(server: Any, options: argparse.Namespace) -> Outcome:
    """Have all lives and faults, consume what is left, and return what the ledger says.  May switch."""
    chance = random.Random(options.seed)
    logging.disable(logging.CRITICAL)
    with psycopg.connect(server.url, autocommit=True) as database:
        database.execute("CREATE TABLE published (number bigint)")
        database.execute("CREATE TABLE handled (number bigint)")
    with Connection(server.url) as connection:
        for queue in (PLAIN, ORDERS):
            queue(connection.default_channel).declare()
    outcome = Outcome()
    with (
        tempfile.NamedTemporaryFile("r") as file,
        Connection(server.url, transport_options={"lease": LEASE}) as connection,
    ):
        # Its link sees to what dead ones held.
        keeper = greenconn.spawn_consumer(Queue("others"), print, connection=connection)
        with zygote(server.url, file.name, options) as process:
            restarts = terminations = 0
            while process.poll() is None:
                gevent.sleep(BETWEEN)
                if terminations < options.terminations:
                    terminations += _terminate(server.url, chance)
                due = (restarts + 1) * options.terminations / max(1, options.restarts)
                if restarts < options.restarts and terminations >= due - 1:
                    server.kill()
                    server.start()
                    restarts += 1
            assert process.stdout is not None
            outcome.update(json.loads(process.stdout.read()))
        outcome.update(terminations=terminations, restarts=restarts)
        _drain(server.url, file.name)
        keeper.stop(LEASE)
        outcome.update(_balance(server.url, file.name))
    return outcome


def _terminate(url: str, chance: random.Random) -> int:
    """Terminate a session that is not ours; return how many there were."""
    with suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as database:
        found = database.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' "
            "AND pid <> pg_backend_pid() ORDER BY pid"
        ).fetchall()
        if found:
            database.execute("SELECT pg_terminate_backend(%s)", chance.choice(found))
            return 1
    return 0


def _drain(url: str, path: str) -> None:
    """Consume what is left.  May switch."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND)
    works = [Work(url, log), Work(url, log)]
    consumers = [works[0].consume(), works[1].write()]
    began = monotonic()
    with psycopg.connect(url, autocommit=True) as database:
        while database.execute("SELECT 1 FROM greenconn.messages LIMIT 1").fetchone():
            assert monotonic() - began < DRAINING, "messages are left"
            gevent.sleep(0.1)
    for consumer in consumers:
        consumer.stop(LEASE)
    for work in works:
        work.close()
    os.close(log)


def _balance(url: str, path: str) -> dict[str, int]:
    """Return what became of all messages."""
    noted: dict[str, Counter[int]] = {}
    with open(path) as file:
        for line in file:
            kind, number = line.split()
            noted.setdefault(kind, Counter())[int(number)] += 1
    begun, confirmed, handled, undone = (
        noted.get(kind, Counter()) for kind in ("begun", "confirmed", "handled", "undone")
    )
    with psycopg.connect(url) as database:
        published, written = (
            Counter(number for (number,) in database.execute(f"SELECT number FROM {table}"))
            for table in ("published", "handled")
        )
    return {
        "begun": len(begun),
        "confirmed": len(confirmed),
        "handled": len(handled),
        "again": handled.total() - len(handled),
        "lost": len(confirmed.keys() - handled.keys()),
        "phantom": len(handled.keys() - begun.keys()),
        "committed": len(published),
        "undone": len(undone),
        "written": len(written),
        "tried": noted.get("written", Counter()).total(),
        "unwritten": len(published.keys() - written.keys()),
        "invented": len(written.keys() - published.keys()) + len(undone.keys() & written.keys()),
        "twice": written.total() - len(written) + published.total() - len(published),
    }


def main() -> int:
    """Run what the command line says, and print the figures."""
    options = _arguments()
    if options.path:
        forks = Zygote(
            *(options.url, options.path, options.seed),
            *(options.lives, options.children, options.longest),
        )
        forks.run()
        print(json.dumps({"ended": 0, **forks.counts}))
        return 0
    from tests.brokers.keeper import Keeper
    from tests.brokers.postgresql import PostgresServer

    began = monotonic()
    with Keeper() as keeper:
        server = PostgresServer(keeper)
        server.start()
        outcome = storm(server, options)
    print(json.dumps({**outcome, "seconds": round(monotonic() - began)}))
    return 0 if outcome.is_right else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.quality.kills", description=__doc__)
    parser.add_argument("--lives", type=int, default=10_000)
    parser.add_argument("--children", type=int, default=4, help="at once")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds of a life")
    parser.add_argument("--terminations", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=0, help="evenly between the terminations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
