"""
Become a given program, in such a way that it ends with the process that started it. Knows nothing of servers or roles.

Run as a script in a fresh interpreter, `python -I -S launch.py PARENT SIGNAL UID GID PROGRAM [ARGUMENT…]`, and not as
`preexec_fn`: what runs there runs between fork and exec, which is not safe beside threads. UID and GID are -1 to stay who we are.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


def main(arguments: list[str]) -> None:
    """Reset signals, drop privileges, tie this process to its parent and exec the program."""
    parent, stop_signal, uid, gid = (int(argument) for argument in arguments[:4])
    command = arguments[4:]
    # A shell's background job starts with SIGINT ignored, and exec keeps that: the program could not be stopped by it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if uid != -1:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After the drop: a change of user clears the parent-death signal. Parent 0 means: outlive whoever started it.
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the process that started this one is gone")
    os.execv(command[0], command)  # noqa: S606 - becoming the program without a shell is the purpose


if __name__ == "__main__":
    main(sys.argv[1:])
