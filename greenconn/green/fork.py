"""After a fork: what the child must forget.

The hook runs in the child before ``os.fork`` returns, by whatever it was called (``os``, ``gevent.os``,
``multiprocessing``, a pre-forking server).  It neither switches greenlets nor runs the loop, and
what it calls must not either.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object that may be registered."""

    def forget(self) -> None:
        """Drop what is the parent's, without a word to any peer.  Never switches."""
        ...


#: By identity, since members may be equal; in the order of registration.
_members: dict[int, weakref.ref[ForkAware]] = {}
_is_installed = False


def register(member: ForkAware) -> None:
    """Call ``member.forget()`` in the child of every fork, as long as *member* lives.

    Only a weak reference is kept.  The hook itself is installed by the first call.
    """
    global _is_installed
    if not _is_installed:
        _is_installed = True
        os.register_at_fork(after_in_child=_forget_all)
    key = id(member)

    def drop(gone: weakref.ref[ForkAware]) -> None:
        # The identity may have been given to another object meanwhile.
        if _members.get(key) is gone:
            del _members[key]

    _members[key] = weakref.ref(member, drop)


def _forget_all() -> None:
    first_error: BaseException | None = None
    for reference in list(_members.values()):
        member = reference()
        if member is not None:
            try:
                member.forget()
            except BaseException as exc:
                first_error = first_error or exc
    if first_error is not None:
        raise first_error  # the interpreter prints it as an ignored exception
