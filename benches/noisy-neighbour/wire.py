"""HTTP/1.1 by hand: what the polite and their neighbour say to the service."""
import asyncio, contextlib

HOST = "127.0.0.1"


def head(method, path, key=None, body=b"", accept=None, length=None, keep=False):
    """A request, whole unless `length` says that more follows; `length` of "chunked" says nothing of how much."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if accept:
        lines.append(f"Accept: {accept}")
    if not keep:
        lines.append("Connection: close")
    if length == "chunked":
        lines.append("Transfer-Encoding: chunked")
    elif body or length is not None:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    if method == "POST":
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def opened(port):
    """A new connection, aborted when left: nothing is waited for."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(port, request, limit_s):
    """The status and the body of the answer, on a connection of its own; 0 when it was closed without one."""
    async with asyncio.timeout(limit_s), opened(port) as (reader, writer):
        writer.write(request)
        answer = await reader.read(-1)
    top, _, body = answer.partition(b"\r\n\r\n")
    return (int(top[9:12]) if top.startswith(b"HTTP/1.1 ") else 0), body


async def answer_on(reader):
    """The head of the next answer on a connection that stays, its body read and left aside."""
    top = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = top.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    if length:
        await reader.readexactly(int(length))
    return top
