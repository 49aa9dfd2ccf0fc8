"""A program for asyncio's streams: a server of a small protocol, and its clients. `test_streams` runs it twice."""

from __future__ import annotations

import asyncio

LINES = [b"first\n", b"second, a longer one\n", b"\n"]
LARGE = bytes(range(256)) * 1000

async def serve(host, port, stop):
    """Speaks a small protocol of lines, counted bytes and the end; says what it saw."""
    seen = []

    async def handle(reader, writer):
        seen.append(writer.get_extra_info("peername")[0] == writer.get_extra_info("sockname")[0] or "other")
        while True:
            command = await reader.readline()
            if not command:
                seen.append(("end", reader.at_eof()))
                break
            word, _, number = command.strip().partition(b" ")
            if word == b"echo":
                writer.write(await reader.readexactly(int(number)))
            elif word == b"lines":
                for _ in range(int(number)):
                    writer.writelines([b"> ", await reader.readuntil(b"\n")])
            elif word == b"send":
                writer.write(LARGE[: int(number)])
            elif word == b"fail":
                raise ValueError("a bug in the handler")
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, host, port)
    async with server:
        assert server.is_serving()
        assert server.sockets[0].getsockname()[1] == port
        await stop()
    assert not server.is_serving()
    return seen

async def serve_for_a_while(host, port):
    """What is left when serving for ever is cancelled."""
    async def handle(reader, writer):
        writer.close()

    server = await asyncio.start_server(handle, host, port)
    try:
        await asyncio.wait_for(server.serve_forever(), 0.01)
    except TimeoutError:
        return "cancelled", server.is_serving()

async def fetch(host, port):
    """A client of it; every answer."""
    answers = []
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"echo 5\nhello")
    answers.append(await reader.read(100))
    writer.write(b"lines 3\n" + b"".join(LINES))
    answers.append(await reader.readexactly(len(b"".join(LINES)) + 6))
    writer.write(b"send 256000\n")
    parts = [await reader.read(10)]
    while sum(map(len, parts)) < 256000:
        parts.append(await reader.read(100000))
    answers.append(b"".join(parts) == LARGE)
    writer.write(b"echo %d\n" % len(LARGE))
    for at in range(0, len(LARGE), 50000):
        writer.write(LARGE[at : at + 50000])
        await writer.drain()
    answers.append(await reader.readexactly(len(LARGE)) == LARGE)
    writer.write(b"echo 4\nlast")
    assert writer.can_write_eof()
    writer.write_eof()
    answers.append(await reader.read())
    answers.append((await reader.read(), reader.at_eof(), await reader.readline()))
    writer.close()
    await writer.wait_closed()
    answers.append(writer.is_closing())
    return answers

async def errors(host, port, free_port):
    """What a client meets when things go wrong, by the names of the exceptions."""
    met = []
    try:
        await asyncio.open_connection(host, free_port)
    except ConnectionRefusedError:
        met.append("refused")
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"echo 3\nabc")
    try:
        await asyncio.wait_for(reader.readexactly(4), 0.5)
    except TimeoutError:
        met.append("timeout")
    writer.write_eof()
    try:
        await reader.readexactly(4)
    except asyncio.IncompleteReadError as error:
        met.append((error.partial, error.expected))
    writer.close()
    reader, writer = await asyncio.open_connection(host, port, limit=20)
    writer.write(b"send 300\n")
    try:
        await reader.readuntil(b"no such thing")
    except asyncio.LimitOverrunError:
        met.append("overrun")
    writer.transport.abort()
    reader, writer = await asyncio.open_connection(host, port, limit=20)
    writer.write(b"echo 64\n" + b"x" * 50 + b"\n" + b"the next one\n")
    try:
        await reader.readline()
    except ValueError:
        met.append("long line")
    met.append(await reader.readline())
    writer.close()
    reader, writer = await asyncio.open_connection(host, port)
    task = asyncio.create_task(reader.read())
    await asyncio.sleep(0.1)
    met.append(task.done())
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        met.append("cancelled")
    writer.close()
    return met

async def many(host, port, count):
    """Clients beside each other."""
    async def one(number):
        reader, writer = await asyncio.open_connection(host, port)
        text = b"client %d\n" % number * 100
        writer.write(b"echo %d\n" % len(text) + text)
        answer = await reader.readexactly(len(text))
        writer.close()
        await writer.wait_closed()
        return answer == text
    return await asyncio.gather(*[one(number) for number in range(count)])
