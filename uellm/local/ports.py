"""Ports of the local stack on the loopback interface."""

from __future__ import annotations

import errno
import socket
from dataclasses import asdict, dataclass

import psutil

from uellm.local.process import free_port

DEFAULT_BASE = 50_051
MAX_BASE = 65_535 - 11


class PortTakenError(RuntimeError):
    """Something else listens on a port of the stack."""

    def __init__(self, part: str, port: int, holder: str) -> None:
        super().__init__(
            f"port {port}, wanted for {part}, is taken{f' by {holder}' if holder else ''}: "
            "end that program, or choose other ports with --port-base (0 takes free ones)"
        )
        self.part, self.port = part, port


@dataclass(frozen=True, slots=True)
class Ports:
    """One port a part."""

    profiler: int
    scheduler: int
    deployer: int
    redis: int
    triton: int

    @classmethod
    def at(cls, base: int = DEFAULT_BASE) -> Ports:
        """The services at `base` and the next two, Redis and Triton ten further on; 0 takes free ports."""
        if base == 0:
            return cls.free()
        return cls(base, base + 1, base + 2, base + 10, base + 11)

    @classmethod
    def free(cls) -> Ports:
        """Ports that are free now."""
        found: set[int] = set()
        while len(found) < len(cls.__slots__):
            found.add(free_port())
        return cls(*found)

    def check(self) -> None:
        """Raises PortTakenError for the first port that is not free."""
        for part, port in asdict(self).items():
            if not _is_free(port):
                raise PortTakenError(part, port, _holder(port))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections of an earlier stack that are not quite closed do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def _holder(port: int) -> str:
    """The process that listens, as far as one may know."""
    try:
        connections = psutil.net_connections("tcp")
        pid = next((c.pid for c in connections if c.laddr and c.laddr.port == port and c.status == "LISTEN"), None)
        return f"{psutil.Process(pid).name()} (pid {pid})" if pid else ""
    except (psutil.Error, OSError):
        return ""
