"""Run what others wrote, on its own library (kombu, mostly) and on greenconn, and print the totals.

Not part of the tests: the programs come from the package index, each into an environment of its own
that is kept.  What cannot be installed is left out with a line that says so.  Ends with 1 when something
fails with greenconn and not with the other, unless the part has a reason for it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.brokers.keeper import Keeper
from tests.brokers.packages import NoBroker
from tests.brokers.rabbitmq import RabbitMQ
from tests.brokers.redis_server import RedisServer
from tests.quality.thirdparty import (
    celery_part,
    django_part,
    dramatiq_part,
    flower_part,
    oslo_part,
    socketio_part,
)
from tests.quality.thirdparty.environments import NotInstalled
from tests.quality.thirdparty.parts import (
    AS_KOMBU,
    CONTRIB,
    KOMBU,
    OWN,
    Outcome,
    Part,
    Site,
    TooLong,
)

WAYS: Final = (KOMBU, OWN, AS_KOMBU, CONTRIB)
#: On kombu, or a module for it.
KOMBUS: Final = (KOMBU, AS_KOMBU, CONTRIB)
PARTS: Final = {
    "socketio": Part(run=socketio_part.run, ways=KOMBUS),
    "socketio-restart": Part(
        run=socketio_part.run_restart, ways=KOMBUS, explained=socketio_part.EXPLAINED
    ),
    "oslo-rpc": Part(run=oslo_part.run_rpc),
    "oslo-driver": Part(run=oslo_part.run_driver, timeout=900.0, explained=oslo_part.EXPLAINED),
    "flower": Part(run=flower_part.run, ways=(KOMBU, CONTRIB)),
    "dramatiq": Part(
        run=dramatiq_part.run, ways=(OWN, CONTRIB), timeout=900.0, explained=dramatiq_part.EXPLAINED
    ),
    "django": Part(run=django_part.run, ways=(OWN, CONTRIB), explained=django_part.EXPLAINED),
    "celery": Part(run=celery_part.run, ways=KOMBUS, timeout=3600.0),
}

#: Of one part, by the way; a text says why there is none.
Row = dict[str, Outcome | str]
NO_END: Final = "no end"


def main() -> int:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality.thirdparty", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--timeout", type=float, help="seconds for a process (300 to 3600, as the part is)"
    )
    parser.add_argument("--logs", type=Path, help="folder for what the programs write")
    options = parser.parse_args()
    logs = options.logs or Path(tempfile.mkdtemp(prefix="greenconn-thirdparty-"))
    logs.mkdir(parents=True, exist_ok=True)
    with Keeper() as keeper:
        try:
            site = Site(
                keeper=keeper, rabbitmq=RabbitMQ(keeper), redis=RedisServer(keeper), logs=logs
            )
            site.rabbitmq.start()
            site.redis.start()
        except NoBroker as error:
            print(f"nothing was run, there is no broker: {error}")
            return 0
        rows: dict[str, Row] = {}
        for name in options.only:
            rows[name] = {}
            for way in options.ways:
                if way in PARTS[name].ways:
                    rows[name][way] = _run(name, way, site, options.timeout)
    _print_table(rows)
    print(f"what the programs wrote is in {logs}")
    return int(any(_is_worse(name, row) for name, row in rows.items()))


def _run(name: str, way: str, site: Site, timeout: float | None) -> Outcome | str:
    """Run one part in one way, print a line about it, and return what it showed."""
    outcome: Outcome | str
    begin = time.monotonic()
    try:
        outcome = PARTS[name].run(way, site, timeout or PARTS[name].timeout)
    except NotInstalled as exc:
        print(f"{name}, {way}: left out, cannot be installed: {exc}", flush=True)
        return "left out"
    except TooLong as exc:
        print(f"{name}, {way}: {exc}", flush=True)
        return NO_END
    print(f"{name}, {way}: {outcome} in {time.monotonic() - begin:.0f} s", flush=True)
    for failed in sorted(outcome.failed):
        print(f"    fails: {failed}", flush=True)
    return outcome


def _print_table(rows: dict[str, Row]) -> None:
    """Print the totals, and what failed in one of greenconn's ways only."""
    form = "{:<16}" + "{:>18}" * len(WAYS)
    print(form.format("", *WAYS))
    for name, row in rows.items():
        print(form.format(name, *(str(row.get(way, "")) for way in WAYS)))
    for name, row in rows.items():
        for way, failed in _differences(row):
            reason = PARTS[name].reason(failed) or "not with the other library"
            print(f"{name}, {way}: {failed}: {reason}")


def _differences(row: Row) -> Iterator[tuple[str, str]]:
    """Yield the names of what failed in greenconn's ways only, each with the way."""
    theirs = row.get(KOMBU, row.get(OWN))
    known = theirs.failed if isinstance(theirs, Outcome) else frozenset()
    for way, outcome in row.items():
        if isinstance(outcome, Outcome) and way not in (KOMBU, OWN):
            for failed in sorted(outcome.failed - known):
                yield way, failed


def _is_worse(name: str, row: Row) -> bool:
    """Return whether a way of greenconn's came to no end or, unexplained, was worse than the other."""
    if any(not PARTS[name].reason(failed) for _, failed in _differences(row)):
        return True
    theirs = row.get(KOMBU, row.get(OWN))
    least = theirs.passed if isinstance(theirs, Outcome) else 0
    for way, outcome in row.items():
        if way not in (KOMBU, OWN):
            if isinstance(outcome, str):
                if outcome == NO_END:
                    return True
            elif not outcome.is_whole or (outcome.passed < least and not outcome.failed):
                return True
    return False


if __name__ == "__main__":
    sys.exit(main())
