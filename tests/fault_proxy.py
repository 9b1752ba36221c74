"""A proxy on loopback that breaks connections: resets, stalls and 503 answers.

It stands between a client and a server and passes bytes on unchanged until a fault is
due. It runs in a thread of the test; faults are counted, so a test can prove that the
one it asked for did happen.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BLOCK_BYTES = 64 * 2**10
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>injected</Message></Error>"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, and how often.

    Args:
        reset_after: a connection is reset when more than this many bytes passed, or never.
        stall_after: a connection falls silent, for ever, when more than this passed.
        direction: whose bytes are counted: ``up`` to the server, ``down`` to the client.
        n_times: connections that are reset or stalled; later ones are left alone.
        unavailable_share: probability that the first request of a connection gets a 503.
        seed: of the draws for ``unavailable_share``.
    """

    reset_after: int | None = None
    stall_after: int | None = None
    direction: Literal["up", "down"] = "down"
    n_times: int = 1
    unavailable_share: float = 0.0
    seed: int = 0


class FaultProxy:
    """A running proxy; made by ``run_fault_proxy``.

    Attributes:
        port: where it listens, on 127.0.0.1.
        counts: connections, and the faults that happened: ``reset``, ``stall``, ``503``.
    """

    def __init__(self, upstream_port: int, faults: Faults) -> None:
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._upstream_port = upstream_port
        self._faults = faults
        self._rng = random.Random(faults.seed)
        self._stopped = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, ready: threading.Event) -> None:
        """Listen until ``stop``; every connection is closed at the end."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._loop = asyncio.get_running_loop()
        ready.set()
        await self._stopped.wait()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for writer in self._writers:
                writer.transport.abort()  # wakes whoever reads or writes
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        server.close()  # last: a connection that is being accepted would be left open

    def stop(self) -> None:
        """End ``serve``; called from another thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        self._writers.append(writer)
        if self._stopped.is_set():  # accepted, but too late
            writer.transport.abort()
            return
        if self._rng.random() < self._faults.unavailable_share:
            self.counts["503"] += 1
            await _answer_unavailable(reader, writer)
            return
        upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        self._writers.append(upstream[1])
        await asyncio.gather(
            self._pass(reader, upstream[1], writer, "up"),
            self._pass(upstream[0], writer, writer, "down"),
        )
        for end in (writer, upstream[1]):
            with contextlib.suppress(ConnectionError):
                await end.wait_closed()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        direction: Literal["up", "down"],
    ) -> None:
        """Copy one direction of a connection to its end, or to its fault."""
        n_bytes = 0
        try:
            with contextlib.suppress(ConnectionError):
                while block := await source.read(BLOCK_BYTES):
                    n_bytes += len(block)
                    if self._is_due("reset", self._faults.reset_after, n_bytes, direction):
                        _reset(client)
                        return
                    if self._is_due("stall", self._faults.stall_after, n_bytes, direction):
                        await self._stopped.wait()
                    target.write(block)
                    await target.drain()
        finally:
            target.close()

    def _is_due(self, fault: str, after: int | None, n_bytes: int, direction: str) -> bool:
        due = (
            after is not None
            and n_bytes > after
            and direction == self._faults.direction
            and self.counts[fault] < self._faults.n_times
        )
        self.counts[fault] += due
        return due


@contextlib.contextmanager
def run_fault_proxy(upstream_port: int, faults: Faults) -> Iterator[FaultProxy]:
    """Run a proxy in front of a port of 127.0.0.1 while the block runs."""
    proxy = FaultProxy(upstream_port, faults)
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve(ready)), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset: what is on the way is lost, and the peer sees an error."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _answer_unavailable(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read one request to its end and answer as an overloaded S3 does."""
    status = b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with contextlib.closing(writer), contextlib.suppress(ConnectionError, EOFError):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        writer.write(status % len(SLOW_DOWN) + SLOW_DOWN)
        await writer.drain()
