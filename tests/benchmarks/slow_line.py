"""A line to a server on loopback, made slow: so many ms to an answer, so many MB/s for all.

    python -I slow_line.py PORT --latency-ms 50 --mb-per-s 100

Prints the port it listens on and runs until its standard input ends. A process of its own, so
that it takes no turns from the client that is timed.
"""

import argparse
import asyncio
import contextlib
import sys
import time

HOST = "127.0.0.1"
BLOCK_BYTES = 128 * 2**10
SHORTEST_PAUSE_S = 1e-3  # shorter debts are paid together


class Line:
    """What all connections share.

    Args:
        latency_s: from a request to its arrival.
        bytes_per_s: of all answers together.
    """

    def __init__(self, upstream_port: int, latency_s: float, bytes_per_s: float) -> None:
        self._port, self._latency_s, self._bytes_per_s = upstream_port, latency_s, bytes_per_s
        self._free_at = 0.0  # when what was let through will have passed

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        upstream = await asyncio.open_connection(HOST, self._port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._up(reader, upstream[1]), self._down(upstream[0], writer))

    async def _up(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while block := await source.read(BLOCK_BYTES):
            await asyncio.sleep(self._latency_s)
            target.write(block)
            await target.drain()
        target.close()

    async def _down(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while block := await source.read(BLOCK_BYTES):
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + len(block) / self._bytes_per_s
            if self._free_at - now > SHORTEST_PAUSE_S:
                await asyncio.sleep(self._free_at - now)
            target.write(block)
            await target.drain()
        target.close()


async def serve(line: Line) -> None:
    """Listen until standard input ends."""
    server = await asyncio.start_server(line.connect, HOST, 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    server.close()


def main() -> None:
    """Be a slow line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--mb-per-s", type=float, default=100.0)
    options = parser.parse_args()
    line = Line(options.port, options.latency_ms / 1e3, options.mb_per_s * 1e6)
    asyncio.run(serve(line))


if __name__ == "__main__":
    main()
