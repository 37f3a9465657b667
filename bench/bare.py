"""A bare fan-out: aiohttp over TLS 1.3, one process, no checks, resume or queues; frames come over a Unix socket."""

import argparse
import asyncio
import ssl
from pathlib import Path

from aiohttp import web

LENGTH_BYTES = 4


async def serve(port: int, certificate: Path, key: Path, feed: Path) -> None:
    """Serve until the process is killed."""
    streams: set[web.StreamResponse] = set()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        streams.add(response)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            streams.discard(response)
        return response

    async def fan_out(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while length := await reader.read(LENGTH_BYTES):
            frame = await reader.readexactly(int.from_bytes(length))
            for response in list(streams):
                await response.write(frame)

    app = web.Application()
    app.router.add_get("/v1/nodes/{id}/events", events)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, backlog=1024).start()
    await asyncio.start_unix_server(fan_out, path=feed)
    await asyncio.get_running_loop().create_future()


def main() -> None:
    """Read where to serve, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    for name in ("--certificate", "--key", "--feed"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.certificate, arguments.key, arguments.feed))


if __name__ == "__main__":
    main()
