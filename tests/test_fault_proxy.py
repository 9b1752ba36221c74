"""The proxy that breaks connections ends cleanly, whatever its clients do."""

import socket
from functools import partial

import pytest
from fault_proxy import Faults, run_fault_proxy

UNUSED_PORT = 9  # of the server behind the proxy, which is never asked


def test_clients_that_never_ask_neither_hold_the_proxy_nor_break_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with run_fault_proxy(UNUSED_PORT, Faults(unavailable_share=1.0)) as proxy:
        connect = partial(socket.create_connection, ("127.0.0.1", proxy.port), timeout=20)
        with connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert client.recv(2**16).startswith(b"HTTP/1.1 503")
        with connect() as client:
            client.sendall(b"GET")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""  # and does not wait for the rest
        idle = connect()
    idle.close()
    assert not caplog.text  # where asyncio reports what nobody caught
