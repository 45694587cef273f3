"""The libraries that are measured over stores; each module has a class ``Works``."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.rivals import Rival


def rivals(**drivers: Rival) -> dict[str, Rival]:
    """greenconn, kombu, and clients by hand."""
    return {
        "greenconn": Rival(
            title="greenconn", module="benchmarks.stores.greenconn_works", distribution="greenconn"
        ),
        "patched": Rival(
            title="greenconn, patched",
            module="benchmarks.stores.greenconn_works",
            distribution="greenconn",
            patched=True,
        ),
        "kombu": Rival(
            title="kombu + gevent",
            module="benchmarks.stores.kombu_works",
            distribution="kombu",
            patched=True,
        ),
        **drivers,
    }


MONGODB = rivals(
    pymongo=Rival(
        title="pymongo by hand", module="benchmarks.stores.mongodb", distribution="pymongo"
    )
)

MEMORY = rivals(
    raw=Rival(
        title="json and a deque",
        module="benchmarks.stores.memory",
        cannot={"publish_many": "it has no greenlets"},
    )
)

#: What is not a driver's work.
_NOT_BY_HAND = dict.fromkeys(
    ("publish_exchange", "publish_200", "queues", "fan_out", "latency", "idle"), ""
)


def of_tables(greenconn: str, kombu: str, raw: Rival) -> dict[str, Rival]:
    """greenconn, kombu over SQLAlchemy, each by its module, and a driver by hand."""
    return {
        "greenconn": Rival(title="greenconn", module=greenconn, distribution="greenconn"),
        "patched": Rival(
            title="greenconn, patched", module=greenconn, distribution="greenconn", patched=True
        ),
        "kombu": Rival(
            title="kombu (SQLAlchemy)",
            module=kombu,
            distribution="sqlalchemy",
            patched=True,
            cannot={
                "queues": "kombu asks for one queue after the other; 2,000 messages of 1,000 queues "
                "take it longer than 300 s",
                "fan_out": "kombu asks for one queue after the other",
            },
        ),
        "raw": replace(raw, cannot=_NOT_BY_HAND),
    }


SQLITE = of_tables(
    "benchmarks.stores.sqlite_greenconn",
    "benchmarks.stores.sqlite_kombu",
    Rival(title="sqlite3 by hand", module="benchmarks.stores.sqlite_raw"),
)
POSTGRESQL = of_tables(
    "benchmarks.stores.postgresql",
    "benchmarks.stores.postgresql_kombu",
    Rival(
        title="psycopg by hand", module="benchmarks.stores.postgresql_raw", distribution="psycopg"
    ),
)
#: Today's kombu has no such transport.
COUCHDB = rivals(
    http=Rival(
        title="geventhttpclient by hand",
        module="benchmarks.stores.couchdb",
        distribution="geventhttpclient",
    )
)
del COUCHDB["kombu"]

SQS = rivals(
    boto3=Rival(title="boto3 by hand", module="benchmarks.stores.sqs", distribution="boto3")
)
