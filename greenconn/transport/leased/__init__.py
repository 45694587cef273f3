"""Channels over stores that lease messages out: SQLite, beanstalk, SQS, MongoDB, CouchDB.

:class:`~greenconn.transport.leased.store.Store` is what each of them writes.
"""
