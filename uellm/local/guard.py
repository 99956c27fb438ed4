"""Turns into a program whose whole process group ends with the process that started it, or with the program itself.

    python -I -S guard.py PARENT_PID PROGRAM [ARGUMENT...]

It must lead a process group. A watcher in that group ends it when the parent ends, even if that is killed: children of
the program go, too. (Triton's stubs do not always notice by themselves that Triton is gone.) Kept free of imports that
take time: every part of the stack starts through it.
"""

import os
import select
import sys
import time

SIGKILL = 9
POLL_SECONDS = 0.5


def main(parent: int, argv: list[str]) -> None:
    """Replace this process by the program; the process id stays. Ends with an error if it cannot be run."""
    if os.getpgrp() != os.getpid():
        sys.exit("must lead a process group")
    leader = os.getpid()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:  # not a child of the program, which knows nothing of it
            watch(parent, leader)
        os._exit(0)
    os.waitpid(between, 0)
    if os.getppid() != parent:  # it ended before the watcher began
        sys.exit("the parent is gone")
    os.execv(argv[0], argv)  # noqa: S606  (no shell is wanted)


def watch(parent: int, leader: int) -> None:
    """End the group, this process with it, as soon as one of the two has ended."""
    try:
        ends = select.poll()
        for pid in (parent, leader):
            ends.register(os.pidfd_open(pid), select.POLLIN)
        ends.poll()
    except ProcessLookupError:
        pass  # one has ended already
    except OSError:  # Linux before 5.3
        while alive(parent) and alive(leader):
            time.sleep(POLL_SECONDS)
    os.killpg(leader, SIGKILL)


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
