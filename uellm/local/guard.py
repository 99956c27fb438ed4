"""Turns into a program that the kernel ends together with its parent (Linux).

    python -I -S guard.py PARENT_PID PROGRAM [ARGUMENT...]

Kept free of imports that take time: every part of the stack starts through it.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main(parent: int, argv: list[str]) -> None:
    """Replace this process; the process id stays. Ends with an error if the program cannot be run."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL):
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it ended before the line above
        sys.exit("the parent is gone")
    os.execv(argv[0], argv)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
