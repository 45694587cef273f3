"""Each public call, interrupted at each of its switches: what does it leave behind?

A call (:mod:`~tests.torture.moments.calls`) is run again and again in a world
(:mod:`~tests.torture.moments.worlds`), each time interrupted at another moment in another way
(:mod:`~tests.torture.moments.sweep`).  Behind each run stands a look at what must be whole, and a
hundred operations of others that must do what they say (:mod:`~tests.torture.moments.scene`).
"""
