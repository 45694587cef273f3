"""Each public call, interrupted at each of its switches: what does it leave behind?

A call (``calls``) is run again and again in a target (``targets``), each time interrupted at another
moment in another way (``sweep``).  Behind each run stands a look at what must be whole, and a hundred
operations of others that must do what they say (``scene``).
"""
