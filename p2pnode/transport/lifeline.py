"""Nobody is left behind: children that end with us, and a watch on our own parent.

Run as a script it starts a command that does not outlive its parent, even when that is killed outright:

    python -I -S lifeline.py PARENT_PID COMMAND [ARGUMENT ...]

On Linux it asks the kernel to kill the command when the parent dies (PR_SET_PDEATHSIG, which survives exec), and
becomes the command. Elsewhere it stays, looks every quarter of a second, and passes SIGTERM on. It is a script and not
a function to run after a fork, since a process with threads can't safely run Python there; it imports the standard
library only.

The kernel counts a *thread* as the parent: start such a child from the thread that runs the event loop.
"""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.25


def command(arguments: list[str]) -> list[str]:
    """`arguments`, wrapped so that the process they start ends with this one."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *arguments]


async def parent_gone(parent: int | None = None) -> None:
    """Return when our parent process has ended: for a node that must not linger when its launcher is killed.

    parent: its process id; default: the present one. To be given by a caller that knows it, so that a parent which
    died before this call is noticed too.
    """
    import asyncio  # here, since the script has to start fast

    expected = os.getppid() if parent is None else parent
    while os.getppid() == expected:  # noqa: ASYNC110 - nothing tells of it everywhere
        await asyncio.sleep(_LOOK_SECONDS)


def _become(parent: int, arguments: list[str]) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it died before the kernel was told
        sys.exit(1)
    os.execv(arguments[0], arguments)


def _stay(parent: int, arguments: list[str]) -> int:
    import subprocess
    import time

    child = subprocess.Popen(arguments, close_fds=False)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        if os.getppid() != parent:
            child.kill()
        time.sleep(_LOOK_SECONDS)
    return child.returncode


def main(argv: list[str]) -> int:
    """The script. `--stay` before the parent's id chooses the way that needs no help from the kernel."""
    stay = argv[:1] == ["--stay"] or not sys.platform.startswith("linux")
    argv = argv[argv[:1] == ["--stay"] :]
    parent, arguments = int(argv[0]), argv[1:]
    if not stay:
        try:
            _become(parent, arguments)
        except (OSError, AttributeError, ImportError):  # a kernel that does not know how
            stay = True
    return _stay(parent, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
