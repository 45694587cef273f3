"""Fault tests: publishers and consumers in a storm of faults, and a ledger that must balance.

``python -m tests.quality.faults --help`` tells how to run it.  A run is a ``storm.Storm`` in a
``targets.Target`` (a broker, with a proxy before it), which a client lives in; the same seed gives the
same faults in the same order.
"""
