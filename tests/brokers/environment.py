"""The environment variables by which the runner, the tests and the user name brokers."""

from __future__ import annotations

import os

#: The address of a RabbitMQ.  Given by the user: use it, and start none.
AMQP_URL = "GREENCONN_TEST_AMQP_URL"
#: The file that describes a private RabbitMQ, for ``RabbitMQHandle.of``.
AMQP_CTL = "GREENCONN_TEST_AMQP_CTL"
#: The address of a RabbitMQ 4.3 or later, for the tests of what older ones do not do.
NEWER_AMQP_URL = "GREENCONN_TEST_NEWER_AMQP_URL"
#: The address of a Redis.  Given by the user: use it, and start none.
REDIS_URL = "GREENCONN_TEST_REDIS_URL"
#: Which servers are private brokers: the system's own (empty), ``newer`` ones, or ``older`` ones of
#: MongoDB and CouchDB instead of what stands in for them.
SERVERS = "GREENCONN_TEST_SERVERS"
#: Which of the newer servers that speak Redis' protocol it is: ``redis`` or ``valkey``.
REDIS_SERVER = "GREENCONN_TEST_REDIS_SERVER"
#: The address of a beanstalkd that takes jobs of 1 MiB.  Given by the user: use it, and start none.
BEANSTALK_URL = "GREENCONN_TEST_BEANSTALK_URL"
#: The address of a CouchDB, with its login: ``couchdb://user:password@host:5984``.
COUCHDB_URL = "GREENCONN_TEST_COUCHDB_URL"
#: The address of a MongoDB, without a database, such as ``mongodb://host:27017``; each test makes a
#: database there and drops it.  Given by the user: use it instead of the stand-in.
MONGODB_URL = "GREENCONN_TEST_MONGODB_URL"
#: The address of a database of PostgreSQL, as a role that may create schemas; each test makes a schema
#: there and drops it.  Given by the user: use it, and start none.
POSTGRESQL_URL = "GREENCONN_TEST_POSTGRESQL_URL"
#: The address of an SQS, as ``sqs://`` for AWS.  Given by the user: use it, and start none.
SQS_URL = "GREENCONN_TEST_SQS_URL"
#: 1: a missing broker is a failure, not a reason to skip tests.
REQUIRE = "GREENCONN_TEST_REQUIRE_BROKERS"
#: 1: all tests run, also those that only the nightly run needs; ``once``: these in one of the
#: two kinds of process.
FULL = "GREENCONN_TEST_FULL"
ONCE = "once"

FALSE = ("", "0", "false", "no")


def servers() -> str:
    """Return which servers the environment asks for: ``newer``, ``older``, or none in particular."""
    return os.environ.get(SERVERS, "")


def are_required() -> bool:
    """Whether a missing broker is a failure; in continuous integration (``CI``) it is."""
    value = os.environ.get(REQUIRE, os.environ.get("CI", ""))
    return value.lower() not in FALSE


def is_full() -> bool:
    """Return whether the environment asks for all tests in each process."""
    return os.environ.get(FULL, "").lower() not in (*FALSE, ONCE)


def is_full_once() -> bool:
    """Return whether the environment asks for all tests, each in one process at least."""
    return os.environ.get(FULL, "").lower() == ONCE
