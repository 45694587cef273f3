"""Outbox: messages that are written in a database transaction and published after its commit.

A program that commits and then publishes loses messages when it dies in between; one that publishes
first announces what may be rolled back.  Here the message is a row of the same transaction, and a
*relay* publishes what was committed::

    with Session(engine) as session, session.begin():
        session.add(Order(number=7))
        outbox.publish(session, "orders", {"number": 7}, key="customer-3")

:mod:`greenconn.contrib.outbox.sqlalchemy` and :mod:`greenconn.contrib.outbox.django` write the rows
and read them; the rest is the same for both:

- :mod:`~greenconn.contrib.outbox.store`: a message as a row, and back;
- :mod:`~greenconn.contrib.outbox.relay`: the shares of several relays;
- :mod:`~greenconn.contrib.outbox.relay`: publishing;
- :mod:`~greenconn.contrib.outbox.store`: the calls of a database that a relay needs.
"""
