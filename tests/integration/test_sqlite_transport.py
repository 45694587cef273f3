"""What a SQLite file has of its own: its address, its faults, its clock."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original
from gevent.queue import Queue as GreenQueue

import greenconn
from greenconn import Connection, Queue
from greenconn.exceptions import (
    NotAllowed,
    NotFound,
    OperationalError,
    PublishRefused,
    RecoverableConnectionError,
)
from greenconn.transport.sqlite import SqliteStore, Transport, messages
from greenconn.transport.sqlite.database import (
    LOG_LIMIT,
    RESERVE_SUFFIX,
    Database,
    DiskFull,
    Job,
    Reserve,
    SqliteOptions,
    as_error,
    database_of,
)
from tests.fix_wires import until
from tests.integration.bounded import storm
from tests.integration.contract import SOON
from tests.integration.processes import run
from tests.tiny_client import TinyClient
from tests.unit.broker.sink import Sink


def raises(function: Callable[[], object]) -> Exception | None:
    """Return what it raises."""
    try:
        function()
    except Exception as exc:
        return exc
    return None


allocate_lock: Callable[[], Any] = get_original("_thread", "allocate_lock")


@pytest.fixture
def path(sqlite_url: str) -> str:
    """The file."""
    return sqlite_url.removeprefix("sqlite:///")


def database(path: str, **options: Any) -> Database:
    """What the links of this process share."""
    shared = database_of(path, SqliteOptions(**options))
    shared.leave()
    return shared


# -- addresses


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqlite://", "must name a SQLite file; write sqlite:///relative.db"),
        ("sqlite:///", "must name a SQLite file; write sqlite:///relative.db"),
        ("sqlite://host/x.db", "has no host 'host'; write sqlite:///relative.db"),
        ("sqlite:///:memory:", "use memory://"),
        ("sqlite:///a%00b", "must not contain a zero byte"),
        ("sqlite:///x.db?synchronous=OFF", "synchronous must be one of NORMAL, FULL, got 'OFF'"),
        ("sqlite:///x.db?busy_timeout=-1", "busy_timeout"),
        ("sqlite:///x.db?look_interval=0", "above 0"),
        ("sqlite:///x.db?lease=0", "above 0"),
        ("sqlite:///x.db?visibility_timeout=5", "unknown option 'visibility_timeout'"),
    ],
)
def test_address_that_cannot_be(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Connection(url).connect()


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Connection("sqlite:///relative.db") as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        assert connection.as_uri() == "sqlite:///relative.db"
    assert (tmp_path / "relative.db").exists()
    assert sorted(os.listdir(tmp_path)) == [
        "relative.db",
        "relative.db-reserve",
    ]  # the log is gone with the last link


def test_path_with_blanks_and_signs(tmp_path: Path) -> None:
    with Connection(f"sqlite:///{tmp_path}/a%20b%3F%23c%C3%A4.db") as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
    assert (tmp_path / "a b?#cä.db").exists()


# -- files that cannot be used


def refusal(path: object) -> str:
    """What a publisher and a consumer are told at once."""
    with Connection(f"sqlite:///{path}") as connection:
        with pytest.raises(NotAllowed) as caught:
            connection.connect()
        with pytest.raises(OperationalError):
            greenconn.publish("q", 1, connection=connection, declare=True)
        consumer = greenconn.spawn_consumer("q", print, connection=connection)
        with pytest.raises(NotAllowed):
            consumer.wait_ready(SOON)
        consumer.kill()
    return str(caught.value)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    assert f"directory {tmp_path}/absent does not exist; create it first" in refusal(
        tmp_path / "absent/x.db"
    )


def test_folder(tmp_path: Path) -> None:
    assert f"SQLite file {tmp_path} must be a file, got a directory" in refusal(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that takes no files")
def test_folder_that_takes_no_files() -> None:
    text = refusal("/proc/self/x.db")
    assert "/proc/self/x.db" in text


def test_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, " * 100)
    assert "name a file that does not exist, or one created by this transport" in refusal(
        tmp_path / "notes.txt"
    )
    assert (tmp_path / "notes.txt").read_text().startswith("not a database")


def test_database_of_another_program(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE things (name TEXT)")
    other.commit()
    other.close()
    assert "it belongs to another program; name another file" in refusal(tmp_path / "other.db")


def test_file_that_another_process_creates_meanwhile(
    path: str, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, just before the first look at the tables."""
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect
    created: list[sqlite3.Connection] = []

    def racing(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db = connect(*args, **kwargs)
        db.set_trace_callback(create)
        return db

    def create(statement: str) -> None:
        if "sqlite_master" not in statement or created:
            return
        other = connect(path, timeout=0.0, isolation_level=None)
        created.append(other)
        other.execute("BEGIN IMMEDIATE")
        Database._create(other)
        try:
            other.execute("COMMIT")
        except sqlite3.OperationalError:  # it is being read
            other.execute("ROLLBACK")
        other.close()

    monkeypatch.setattr(sqlite3, "connect", racing)
    with Connection(sqlite_url) as connection:
        connection.connect()
        greenconn.publish("q", "x", connection=connection, declare=True)
    assert created


@pytest.mark.parametrize("purges", [False, True])
def test_lengths_are_right_behind_a_storm(
    path: str, sqlite_url: str, long: bool, purges: bool
) -> None:
    storm(sqlite_url, 200 if long else 25, purges=purges)
    with closing(sqlite3.connect(path)) as file:
        noted = file.execute("SELECT messages, bytes FROM lengths").fetchall()
        waiting = "SELECT count(*), coalesce(sum(length(body)), 0) FROM messages WHERE state = 0"
        assert noted == file.execute(waiting).fetchall()


def test_file_of_a_later_version(path: str, sqlite_url: str) -> None:
    with Connection(sqlite_url) as connection:
        connection.connect()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 1000")
    later.close()
    assert "created by a later version of greenconn" in refusal(path)


# -- links that are taken for dead


def rows_in(path: str, question: str) -> list[Any]:
    """What is in the file now, whoever has it open."""
    db = sqlite3.connect(path)
    try:
        return db.execute(question).fetchall()
    finally:
        db.close()


def owners_in(path: str) -> dict[str, float]:
    """The registered links, and when their leases end."""
    return dict(rows_in(path, "SELECT owner, until FROM owners"))


@pytest.mark.parametrize("declare", [True, False])
def test_link_without_its_row_registers_nothing(sqlite_url: str, path: str, declare: bool) -> None:
    """Between the loss and the next renewal nothing is left behind in the name of the dead."""
    with Connection(f"{sqlite_url}?lease=600") as connection:
        channel = connection.default_channel
        Queue("first", exclusive=True)(channel).declare()
        Queue("durable")(channel).declare()
        shared = database(path, lease=600.0)
        (owner,) = owners_in(path)
        shared.write(messages.leave, shared.queues, owner)
        with pytest.raises(RecoverableConnectionError, match="no sign of life for longer"):
            if declare:
                channel.queue_declare("second", exclusive=True)
            else:
                channel.basic_consume("durable", callback=print)
        assert owner not in owners_in(path)


def test_clock_that_jumped_kills_nobody(sqlite_url: str, path: str) -> None:
    """Where all leases seem to have ended, who lives is asked to renew, and keeps what it has."""
    with Connection(f"{sqlite_url}?lease=600") as connection:
        Queue("own", exclusive=True)(connection.default_channel).declare()
        shared = database(path, lease=600.0)
        (owner,) = owners_in(path)
        shared.write(lambda db: db.execute("UPDATE owners SET until = 1.0").rowcount)
        with Connection(f"{sqlite_url}?lease=599") as other:
            other.ensure_connection()  # it looks for the dead
            until(lambda: owners_in(path).get(owner, 0.0) > 1.0)
        assert connection.default_channel.queue_declare("own", passive=True).queue == "own"


def test_link_that_died_a_moment_ago_is_found_by_its_pipe(sqlite_url: str, path: str) -> None:
    with Connection(sqlite_url) as connection:
        connection.ensure_connection()
        shared = database(path)
        insert = "INSERT INTO owners (owner, until) VALUES ('dead', 1.0)"
        shared.write(lambda db: db.execute(insert).rowcount)
        with Connection(f"{sqlite_url}?lease=599") as other:
            other.ensure_connection()
            until(lambda: owners_in(path) == {})


# -- faults


@pytest.mark.full
def test_full_disk_refuses_and_recovers(sqlite_url: str, path: str) -> None:
    with Connection(sqlite_url) as connection:
        greenconn.publish("q", "fits", connection=connection, declare=True)
        shared = database(path)
        (pages,) = shared.read(lambda db: db.execute("PRAGMA page_count").fetchone())
        shared.read(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(PublishRefused, match="free some space; nothing was stored"):
            greenconn.publish("q", "x" * 100_000, connection=connection, declare=True)
        shared.read(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
        greenconn.publish("q", "later", connection=connection, declare=True)
        channel = connection.default_channel
        bodies = [channel.basic_get("q", no_ack=True).body for _ in range(2)]
        assert bodies == ["fits", "later"]
        assert channel.basic_get("q") is None


#: Fills a disk of its own, empties the queue, and goes on.
FULL_DISK = """
import os, subprocess, sys
import gevent
import greenconn

folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
print("mounted", flush=True)
url = f"sqlite:///{folder}/b.db?reserve=1000000"
count = 0
with greenconn.Connection(url) as connection:
    try:
        while True:
            greenconn.publish("q", "x" * 20_000, connection=connection, declare=True, timeout=30)
            count += 1
    except greenconn.exceptions.PublishRefused as exc:
        print(count, exc)
got = []
with greenconn.Connection(url) as connection:  # it is opened on the full disk
    consumer = greenconn.spawn_consumer("q", lambda body, message: got.append(body),
                                        connection=connection)
    with gevent.Timeout(60):
        while consumer.stats()["handled"] < count:
            gevent.sleep(0.01)
    print("drained", len(got))
    greenconn.publish("other", "again", connection=connection, declare=True, timeout=30)
    print("published")
    consumer.stop(10)
"""

#: Starts that where it may have disks of its own.
APART = """
import os, sys
os.execvp("unshare", ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv[1:]])
"""


@pytest.mark.full
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
def test_full_disk_is_drained(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    outcome = run("-c", APART, "-c", FULL_DISK, str(folder))
    if "mounted" not in outcome.output:
        pytest.skip(f"no disk of its own: {outcome.errors.strip()[-200:]}")
    assert outcome.errors == ""
    _, refused, drained, published = outcome.output.splitlines()
    count, _, text = refused.partition(" ")
    assert int(count) > 100
    needed = "the disk must have 2000000 bytes free, twice the option reserve=1000000"
    assert needed in text
    assert "set a smaller reserve in the URL (?reserve=BYTES); nothing was stored" in text
    assert (drained, published) == (f"drained {count}", "published")


def test_log_shrinks_again(sqlite_url: str, path: str) -> None:
    with Connection(sqlite_url) as connection:
        greenconn.publish("q", "x" * 20_000_000, connection=connection, declare=True)
        assert os.stat(f"{path}-wal").st_size > 20_000_000
        for number in range(3):
            greenconn.publish("q", number, connection=connection)
        assert os.stat(f"{path}-wal").st_size <= LOG_LIMIT


def test_reserve_is_made_removed_and_made_again(tmp_path: Path) -> None:
    path = str(tmp_path / "b.db")
    reserve = Reserve(path, 5000)
    assert reserve.ensure()
    assert os.stat(path + RESERVE_SUFFIX).st_size == 5000
    assert reserve.remove()
    assert not reserve.remove()
    assert reserve.ensure()
    (name,) = os.listdir(tmp_path)
    assert name == f"b.db{RESERVE_SUFFIX}"
    assert not Reserve(path + "2", 10**18).ensure()
    # What cannot be made although there is room keeps nobody from publishing.
    assert Reserve(str(tmp_path / "absent" / "b.db"), 5000).ensure()
    assert Reserve(path + "2", 0).ensure()
    assert os.listdir(tmp_path) == [name]


FILES_OF_A_LIMITED_SIZE = """
import resource, sys
import greenconn

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
with greenconn.Connection(sys.argv[1]) as connection:
    try:
        for number in range(1000):
            greenconn.publish("q", "x" * 2000, connection=connection, timeout=30, declare=True)
    except greenconn.exceptions.PublishRefused as exc:
        print(number, exc)
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 does not tell which error it is")
def test_file_that_may_not_grow_refuses_at_once(sqlite_url: str) -> None:
    outcome = run("-c", FILES_OF_A_LIMITED_SIZE, sqlite_url)
    assert (outcome.code, outcome.errors) == (0, "")
    number, _, text = outcome.output.partition(" ")
    assert int(number) > 0
    assert "disk I/O error: look at the disk, its quota, and the limits of this process" in text


def test_full_disk_does_not_keep_from_closing(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(store: SqliteStore) -> None:
        store.drop()
        raise DiskFull("free some space")

    with Connection(sqlite_url) as connection:
        greenconn.publish("q", "x", connection=connection, declare=True)
        # To leave is to write; the lease ends by itself.
        monkeypatch.setattr(SqliteStore, "close", no_room)
    assert not connection.connected


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("disk I/O error", "look at the disk, its quota, and the limits of this process"),
        (
            "unable to open database file",
            "check that this process can create files in that directory",
        ),
        ("database or disk is full", "free some space"),
    ],
)
def test_what_sqlite_says_comes_with_what_to_do(reason: str, text: str) -> None:
    message = str(as_error(sqlite3.OperationalError(reason), "/mail.db"))
    assert message.startswith(f"SQLite file /mail.db: {reason}: ")
    assert text in message


def test_a_file_that_is_closed_meanwhile(sqlite_url: str, path: str) -> None:
    shared = database_of(path, SqliteOptions())
    shared.open()
    shared.leave()
    with pytest.raises(RecoverableConnectionError, match="was closed"):
        shared.read(lambda db: None)
    shared.join()


def test_file_that_was_removed_begins_anew(sqlite_url: str, path: str) -> None:
    with Connection(sqlite_url) as connection:
        greenconn.publish("q", "gone", connection=connection, declare=True)
        for suffix in ("", "-wal", "-shm"):
            os.unlink(path + suffix)
        with pytest.raises(RecoverableConnectionError, match="removed or replaced"):
            connection.default_channel.basic_get("q")
        greenconn.publish(
            "q", "new", connection=connection, declare=True
        )  # the connection has recovered
        message = Queue("q")(connection.default_channel).get(no_ack=True)
        assert message is not None
        assert message.body == "new"


def test_lock_of_others_is_waited_for(sqlite_url: str, path: str) -> None:
    with Connection(sqlite_url) as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        publisher = gevent.spawn(greenconn.publish, "q", 2, connection=connection, declare=True)
        turns = 0
        while turns < 50:
            gevent.sleep(0.002)  # the hub goes on
            turns += 1
        assert not publisher.ready()
        other.execute("COMMIT")
        other.close()
        publisher.get(timeout=SOON)


@pytest.mark.full
def test_lock_that_never_ends_is_reported(sqlite_url: str, path: str) -> None:
    with Connection(f"{sqlite_url}?busy_timeout=0.05") as connection:
        channel = connection.default_channel
        Queue("q")(channel).declare()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RecoverableConnectionError, match="raise busy_timeout"):
            channel.basic_publish(channel.prepare_message("x"), "", "q")
        other.execute("COMMIT")
        other.close()


# -- messages


def test_priorities_need_no_declaration(sqlite_url: str) -> None:
    with Connection(sqlite_url) as connection:
        channel = connection.default_channel
        queue = Queue("q")(channel)
        queue.declare()
        for priority in (0, 9, 5, 9):
            message = channel.prepare_message(str(priority), priority=priority)
            channel.basic_publish(message, "", "q")
        bodies = [channel.basic_get("q", no_ack=True).body for _ in range(4)]
        assert bodies == ["9", "9", "5", "0"]


def test_names_in_the_file_reach_nothing_else(sqlite_url: str, path: str, tmp_path: Path) -> None:
    """Who may write the file cannot have us write or remove what he may not."""
    (tmp_path / "precious").write_text("untouched")
    (tmp_path / "broker.db-aa.wake").write_text("no pipe")
    with Connection(f"{sqlite_url}?look_interval=0.05") as connection:
        Queue("q")(connection.default_channel).declare()
        for owner in ("../precious", "/precious", f"{tmp_path}/precious", "aa"):
            database(path, look_interval=0.05).write(
                lambda db, owner=owner: db.execute(
                    "INSERT INTO consumers (queue, owner, count, exclusive, armed) "
                    "SELECT id, ?, 1, 0, 1 FROM queues",
                    (owner,),
                )
            )
        greenconn.publish("q", 1, connection=connection, declare=True)
        # None of them is a process that could be woken.
        until(lambda: not rows_in(path, "SELECT 1 FROM consumers"))
    assert (tmp_path / "precious").read_text() == "untouched"
    assert (tmp_path / "broker.db-aa.wake").read_text() == "no pipe"


def test_what_no_process_was_woken_for_is_found(
    sqlite_url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stores a message or deletes a queue may die before it wakes the consumers."""
    with Connection(f"{sqlite_url}?look_interval=0.05") as connection:
        channel = connection.default_channel
        got: list[Any] = []
        gone: list[str] = []
        for name in ("deleted", "kept", "empty"):
            channel.queue_declare(name)
            channel.basic_consume(
                name, name, no_ack=True, callback=got.append, on_cancel=gone.append
            )
        shared = database(path, look_interval=0.05)
        shared.write(shared.queues.drop, "deleted")

        def drained() -> bool:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            return bool(got or gone)

        until(drained)
        assert (gone, got) == (["deleted"], [])
        with monkeypatch.context() as quiet:
            quiet.setattr(SqliteStore, "_wake_processes", lambda self, pipes: None)
            with Connection(sqlite_url) as other:
                greenconn.publish("kept", 1, connection=other)
            gone.clear()
            until(drained)
        assert [message.body for message in got] == ["1"]


class Disk:
    """What the disk has of a file, as if the power failed now.

    Attributes:
        writes: how often a program has waited for the disk.
        error: of the next write.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self._path = path
        self._copy = str(folder / "copy.db")
        self.writes = 0
        self.error: OSError | None = None

    def write(self, descriptor: int) -> None:
        """Take the place of ``fdatasync``."""
        error, self.error = self.error, None
        if error is not None:
            raise error
        os.fdatasync(descriptor)
        self.writes += 1
        for suffix in ("", "-wal"):
            shutil.copy(self._path + suffix, self._copy + suffix)

    def count(self, table: str) -> int:
        """Return how many rows a table has on the disk."""
        with closing(sqlite3.connect(self._copy)) as copy:
            (found,) = copy.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(found)


@pytest.fixture
def disk(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(path, tmp_path)
    monkeypatch.setattr("greenconn.transport.sqlite.database._write_to_disk", made.write)
    return made


def test_confirmed_messages_are_on_the_disk(sqlite_url: str, disk: Disk) -> None:
    with Connection(sqlite_url) as connection:
        greenconn.publish("q", 0, connection=connection, declare=True)
        assert disk.count("messages") == 1
        with connection.channel() as channel:
            greenconn.Producer(channel).publish(1, routing_key="q")
            connection.ensure_connection()
        greenconn.publish_many("q", [2, 3], connection=connection)
        assert disk.count("messages") == 4
        writes = disk.writes
        gevent.joinall(
            [
                gevent.spawn(greenconn.publish, "q", each, connection=connection)
                for each in range(100)
            ],
            raise_error=True,
        )
        assert disk.count("messages") == 104
        assert disk.writes - writes < 50  # they wait together


def test_declarations_are_on_the_disk(sqlite_url: str, disk: Disk) -> None:
    with Connection(sqlite_url) as connection:
        Queue("q", greenconn.Exchange("e", "topic"), "a.#")(connection).declare()
        assert [disk.count(each) for each in ("queues", "exchanges", "bindings")] == [1, 1, 1]
        writes = disk.writes
        Queue("q", greenconn.Exchange("e", "topic"), "a.#")(connection).declare()
        assert disk.writes == writes  # nothing has changed


def test_what_may_be_lost_does_not_wait_for_the_disk(sqlite_url: str, disk: Disk) -> None:
    got: list[int] = []
    with Connection(sqlite_url) as connection:
        Queue("q")(connection).declare()
        writes = disk.writes
        greenconn.publish("q", 1, connection=connection, delivery_mode="transient")
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=connection
        )
        until(lambda: got == [1], SOON)
        assert consumer.stop(SOON)
        Queue("", exclusive=True)(connection).declare()
        assert disk.writes == writes
    with Connection(f"{sqlite_url}?synchronous=normal") as connection:
        greenconn.publish("q", 2, connection=connection)
        assert disk.writes == writes


def test_the_disk_does_not_take_it(sqlite_url: str, disk: Disk) -> None:
    with Connection(sqlite_url) as connection:
        Queue("q")(connection).declare()
        disk.error = OSError(errno.EIO, "Input/output error")
        with (
            connection.channel() as channel,
            pytest.raises(
                RecoverableConnectionError,
                match=r"broker\.db: Input/output error: look at the disk",
            ),
        ):
            greenconn.Producer(channel).publish(1, routing_key="q", confirm_timeout=SOON)
    with Connection(sqlite_url) as connection:
        disk.error = OSError(errno.EIO, "Input/output error")
        greenconn.publish("q", 2, connection=connection)  # again, on the next connection
        assert disk.count("messages") == 3


def test_greenlets_commit_together(sqlite_url: str, path: str) -> None:
    with Connection(sqlite_url) as connection:
        greenconn.publish("q", "first", connection=connection, declare=True)
        shared = database(path)
        before = shared.read(lambda db: db.total_changes)
        transactions = 0
        transact = shared._transact

        def counted(jobs: Any) -> Any:
            nonlocal transactions
            transactions += 1
            return transact(jobs)

        shared._transact = counted  # type: ignore[method-assign]
        publishers = [
            gevent.spawn(greenconn.publish, "q", number, connection=connection, declare=True)
            for number in range(200)
        ]
        gevent.joinall(publishers, raise_error=True)
        assert shared.read(lambda db: db.total_changes) - before == 200
        assert transactions < 20


@pytest.mark.parametrize(
    "envelope",
    [
        "no JSON",
        "[" * 100_000,
        "[]",
        "5",
        '{"properties": 5}',
        '{"properties": {}, "headers": [1]}',
    ],
    ids=["text", "deep", "list", "number", "properties", "headers"],
)
def test_unreadable_message_is_rejected(sqlite_url: str, path: str, envelope: str) -> None:
    with Connection(sqlite_url) as connection:
        greenconn.publish("q", "good", connection=connection, declare=True)
        database(path).write(
            lambda db: db.execute(
                "INSERT INTO messages (queue, state, priority, envelope, body) "
                "SELECT id, 0, 9, ?, x'00ff' FROM queues",
                (envelope,),
            )
        )
        got: list[str] = []
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.append(body), connection=connection
        )
        until(lambda: got == ["good"])
        assert consumer.stats()["rejected"] == 1
        assert consumer.stop(SOON)


# -- the command line


@pytest.mark.programs
def test_commands_work_and_say_what_is_wrong(sqlite_url: str, tmp_path: Path) -> None:
    def command(*arguments: str) -> tuple[int, str]:
        outcome = run("-m", "greenconn", *arguments)
        return outcome.code, outcome.output + outcome.errors

    assert command("publish", "--declare", "--url", sqlite_url, "mail", "hello") == (
        0,
        "published 1 message to mail\n",
    )
    code, text = command("consume", "--url", sqlite_url, "mail", "--count", "1")
    assert (code, text.splitlines()[0]) == (0, "hello")
    code, text = command("ping", sqlite_url)
    assert code == 0
    assert f"{sqlite_url}: sqlite" in text
    code, text = command("ping", f"sqlite:///{tmp_path}/absent/x.db")
    assert code == 1
    assert text == (
        f"greenconn: SQLite file {tmp_path}/absent/x.db: directory {tmp_path}/absent does not "
        "exist; create it first\n"
    )


# -- claims that nobody waits for


@pytest.mark.parametrize("how", ["consume", "get"])
def test_what_a_lost_link_claims_is_requeued_at_once(path: str, how: str) -> None:
    """Its transaction is done in the thread all the same."""
    options: dict[str, Any] = {"lease": 1000.0}
    transport = Transport(TinyClient(f"sqlite:///{path}", **options))
    link = transport.establish_connection()
    channel = transport.create_channel(link)
    with Connection(f"sqlite:///{path}", transport_options=options) as other:
        greenconn.publish("q", "first", connection=other, declare=True)  # it knows the queue now
        assert channel.queue_purge("q") == 1
        if how == "consume":
            channel.basic_consume("q", sink=Sink())
        worker = database(path, **options)._worker
        held = allocate_lock()
        held.acquire()
        begun: list[bool] = []

        def wait(connection: Any) -> None:
            begun.append(True)
            held.acquire()

        # The thread does nothing else meanwhile; what comes is done in one transaction afterwards.
        worker.post(Job(wait, (), False), lambda value: None)
        try:
            until(lambda: begun)
            publishing = gevent.spawn(greenconn.publish, "q", "x", connection=other, declare=True)
            until(lambda: len(worker._pending) == 1)
            if how == "consume":
                link.wake("q")
            else:
                getting = gevent.spawn(raises, lambda: channel.basic_get("q"))
            until(lambda: len(worker._pending) == 2)
            link.end(RecoverableConnectionError("it is gone"))
            gevent.sleep(0)
        finally:
            held.release()
        publishing.get(timeout=SOON)
        if how == "get":
            assert isinstance(getting.get(timeout=SOON), RecoverableConnectionError)
        message = other.default_channel.basic_get("q")
        assert message is not None
        assert (message.body, message.redelivered) == ("x", False)
        message.ack()


def test_links_of_one_process_wake_one_another_without_pipes(
    sqlite_url: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "greenconn.transport.sqlite.wake_process",
        lambda path, words: bool(written.append(path)),  # type: ignore[func-returns-value]
    )
    got: GreenQueue[Any] = GreenQueue()
    with Connection(sqlite_url) as consuming, Connection(sqlite_url) as publishing:
        consumer = greenconn.spawn_consumer(
            unique, lambda body, message: got.put(body), connection=consuming
        )
        assert consumer.wait_ready(SOON)
        for number in range(3):
            greenconn.publish(unique, number, connection=publishing)
            assert got.get(timeout=SOON) == number
        assert consumer.stop(SOON)
    assert not written


def test_who_uses_a_queue_does_not_have_its_messages_counted(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Connection(sqlite_url) as connection:
        Queue("q")(connection.default_channel).declare()
    counted: list[object] = []
    counts = SqliteStore.counts

    def counting(self: SqliteStore, names: Any) -> Any:
        counted.append(names)
        return counts(self, names)

    monkeypatch.setattr(SqliteStore, "counts", counting)
    handled = GreenQueue[object]()
    targets: list[Any] = ["q", Queue("q")]
    with Connection(sqlite_url) as connection:
        for target in targets:
            greenconn.publish(target, "x", connection=connection)
            consumer = greenconn.spawn_consumer(
                target, lambda body, message: handled.put(body), connection=connection
            )
            assert handled.get(timeout=SOON) == "x"
            assert consumer.stop(SOON)
        assert counted == []
        found = connection.default_channel.queue_declare("q", passive=True, nowait=True)
        assert (found.queue, found.message_count) == ("q", 0)
        with pytest.raises(NotFound):
            connection.channel().queue_declare("none", passive=True, nowait=True)
        greenconn.publish("q", "y", connection=connection)
        assert connection.default_channel.queue_declare("q", passive=True).message_count == 1
        assert len(counted) == 1


def test_no_statement_reads_all_messages(sqlite_url: str, path: str) -> None:
    """SQLite finds what each statement is about by an index, however many messages wait."""
    dying = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "plain"}
    arguments: dict[str, dict[str, Any]] = {
        "plain": {},
        "bounded": {"x-max-length": 2, **dying},
        "single": {"x-single-active-consumer": True},
        "ordered": {"x-max-priority": 5},
        "short": {"x-message-ttl": 50, **dying},
        "idle": {"x-expires": 60_000},
    }
    statements: set[str] = set()
    with Connection(sqlite_url) as connection:
        channel = connection.default_channel
        database(path).write(lambda db: db.set_trace_callback(statements.add))
        for name, its in arguments.items():
            channel.queue_declare(name, arguments=its)
            for delay in (None, 0.1, 60.0):
                greenconn.publish(name, 1, connection=connection, delay=delay)
        calls: list[str] = []

        def handle(body: object, message: greenconn.Message) -> None:
            calls.append(message.delivery_info["routing_key"])
            if calls.count(calls[-1]) == 1:
                raise greenconn.RetryLater(1)

        consumers = [
            greenconn.spawn_consumer(name, handle, connection=connection) for name in arguments
        ]
        # Each message once, and the first of each queue once more; those of *short* may have died.
        until(lambda: len(calls) >= 2 * len(arguments) + len(set(calls)), SOON)
        for consumer in consumers:
            assert consumer.stop(SOON)
        greenconn.publish("plain", 1, connection=connection)
        claimed = channel.basic_get("plain")
        assert claimed is not None
        channel.basic_reject(claimed.delivery_tag, requeue=True)
        for name in arguments:
            greenconn.publish(name, 1, connection=connection)
            channel.queue_purge(name)
            channel.queue_delete(name)
        database(path).write(lambda db: db.set_trace_callback(None))
    with closing(sqlite3.connect(path)) as file:
        plans = {
            (statement, step)
            for statement in statements
            if statement.split(None, 1)[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
            for _, _, _, step in file.execute(f"EXPLAIN QUERY PLAN {statement}")
        }
    assert any("messages_in_order" in step for _, step in plans)
    assert any("messages_delayed" in step for _, step in plans)
    # The claimed ones of all queues are few; a queue is deleted with its own.
    assert [
        plan
        for plan in plans
        if re.match(r"SCAN (TABLE )?(messages|m)\b(?! USING INDEX messages_claimed)", plan[1])
    ] == []
