"""The yardstick of the closed-loop benchmark: HTTP parsed by httptools on uvloop, and a constant answer.

It keeps what it parsed (URL, headers, body) as any server must, and does nothing with it: no JSON, no queue, no model.
Run: `python bench/bare_server.py PORT`.
"""

import asyncio
import sys
from typing import cast

import httptools
import uvloop

# The body Penstock sends for the benchmark's input, with the headers it sends, Server-Timing apart.
BODY = (
    b'{"model_name":"sum","model_version":"1",'
    b'"outputs":[{"name":"y","datatype":"FP32","shape":[1,1],"data":[31.600000381469727]}]}'
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


class BareConnection(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.parser = httptools.HttpRequestParser(self)
        self.on_message_begin()

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes."""
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Httptools: a request begins."""
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        """Httptools: target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Httptools: header."""
        self.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        """Httptools: body."""
        self.body.append(data)

    def on_message_complete(self) -> None:
        """Httptools: whole request."""
        self.transport.write(ANSWER)


async def serve(port: int) -> None:
    """Listen on loopback until killed."""
    server = await asyncio.get_running_loop().create_server(BareConnection, "127.0.0.1", port, backlog=1_024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
