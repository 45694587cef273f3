"""Channels over stores that lease messages out: SQLite, beanstalk, SQS, MongoDB, CouchDB.

:class:`~greenconn.broker.port.Store` is what each of them writes.
"""
