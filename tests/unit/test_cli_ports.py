"""Ports of the local stack."""

from __future__ import annotations

import os
import socket

import pytest

from uellm.local.ports import Ports, PortTakenError


def test_ports_lie_at_fixed_distances() -> None:
    assert Ports.at(50_051) == Ports(50_051, 50_052, 50_053, redis=50_061, triton=50_062)


def test_free_ports_are_free_and_different() -> None:
    ports = Ports.at(0)
    ports.check()
    assert len({ports.profiler, ports.scheduler, ports.deployer, ports.redis, ports.triton}) == 5


def test_a_taken_port_is_named_with_its_part_its_holder_and_the_flag() -> None:
    ports = Ports.free()
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports.redis))
        other.listen()
        with pytest.raises(PortTakenError, match=rf"{ports.redis}, wanted for redis,.*pid {os.getpid()}.*--port-base"):
            ports.check()


def test_a_port_that_was_used_a_moment_ago_is_free() -> None:
    ports = Ports.free()
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Redis and gRPC servers do
        server.bind(("127.0.0.1", ports.triton))
        server.listen()
        with socket.create_connection(("127.0.0.1", ports.triton)):
            accepted, _ = server.accept()
            accepted.close()  # the server's side closes first and waits for stragglers
    ports.check()
