"""kombu's hooks (``_get``, ``_put``, ``_size``...) as a store of :mod:`greenconn.broker`.

A broker that is only hooks knows lists to put into and to take out of: what was taken out is gone from
it, and no caller waits for it.  The channel keeps unacknowledged messages, and requeues what is
not handled.
"""
