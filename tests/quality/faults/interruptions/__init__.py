"""Each public call, interrupted at each of its switches: what does it leave behind?

A call (:mod:`~tests.quality.faults.interruptions.calls`) is run again and again in a target
(:mod:`~tests.quality.faults.interruptions.targets`), each time interrupted at another moment in another way
(:mod:`~tests.quality.faults.interruptions.sweep`).  Behind each run stands a look at what must be whole, and a
hundred operations of others that must do what they say (:mod:`~tests.quality.faults.interruptions.scene`).
"""
