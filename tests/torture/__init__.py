"""The torture: publishers and consumers in a storm of faults, and a ledger that must balance.

``python -m tests.torture --help`` tells how to run it.  A run is a :class:`~tests.torture.storm.Storm`
in a :class:`~tests.torture.worlds.World` (a broker, with a proxy before it), which a client lives in;
the same seed gives the same faults in the same order.
"""
