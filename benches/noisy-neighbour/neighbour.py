"""A neighbour that takes all it can: one key, everything at once. Started by run.py; at SIGTERM it says what it got.

One thread, so at most one core; the rates below keep it well within, and each is 100 times a polite tenant's or more
where the service lets it.
"""
import asyncio, collections, itertools, json, os, resource, signal, socket, sys, time

from wire import HOST, answer_on, ask, head, opened

BODY = 8 * 1024 * 1024 - 64  # Just within what a body may have.
LIMIT_S = 60.0
LONG = 60_000  # Tokens of a task that runs for a minute.


class Neighbour:
    """What it knows, and what it got."""

    def __init__(self, told):
        self.port, self.key, self.rate = told["port"], told["key"], told["rate"]
        self.counts = collections.defaultdict(collections.Counter)
        self.numbers = itertools.count()
        self.waiting = None  # The id of a task that waits for long.

    def note(self, what, status):
        self.counts[what][str(status)] += 1

    def refusal(self, top):
        """The status of an answer, with the policy where it names one."""
        policy = top.lower().partition(b"\r\nx-policy: ")[2].partition(b"\r\n")[0]
        return top[9:12].decode() + (f" {policy.decode()}" if policy else "")

    async def loop(self, what, workers, per_s, once):
        """So many workers do it again and again, together at most so often a second."""
        pace = Pace(per_s * self.rate)

        async def worker(number):
            while True:
                await pace.turn()
                try:
                    async with asyncio.timeout(LIMIT_S):
                        await once(number)
                except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
                    self.note(what, type(error).__name__)

        await asyncio.gather(*(worker(number) for number in range(workers)))

    async def submit(self, what, body, **more):
        """Submits a task on a connection of its own, and does not read on."""
        body = json.dumps({"model_ref": "chat", **body}).encode()
        async with opened(self.port) as (reader, writer):
            writer.write(head("POST", "/v1/tasks", self.key, body=body, **more))
            self.note(what, self.refusal(await reader.readuntil(b"\r\n\r\n")))

    async def keep_waiting(self):
        """Sees to it that a task waits: behind one of the same conversation that runs for a minute."""
        while True:
            talk = f"wait-{next(self.numbers)}"
            for name, tokens in (("runs", LONG), ("waits", 1)):
                body = {"prompt": "x", "max_tokens": tokens, "session_id": talk, "task_id": f"{talk}-{name}",
                        "model_ref": "chat"}
                status = 0
                while status not in (200, 202):
                    try:
                        status, _ = await ask(self.port, head("POST", "/v1/tasks", self.key,
                                                              body=json.dumps(body).encode()), LIMIT_S)
                    except (OSError, TimeoutError):
                        await asyncio.sleep(0.1)
            self.waiting = f"{talk}-waits"
            await asyncio.sleep(LONG / 1000 - 5)

    async def waiting_task(self):
        while self.waiting is None:
            await asyncio.sleep(0.1)
        return self.waiting

    async def bodies(self):
        """200 bodies that come to 99 % and never end, half of which do not say how long they are."""
        piece = b"x" * 65536

        async def send(writer, is_chunked):
            left = BODY * 99 // 100
            writer.write(b'{"prompt": "' if not is_chunked else b'c\r\n{"prompt": "\r\n')
            while left > 0:
                now = piece[:left]
                writer.write(b"%x\r\n%b\r\n" % (len(now), now) if is_chunked else now)
                await writer.drain()
                left -= len(now)
            await asyncio.Event().wait()

        async def once(number):
            async with opened(self.port) as (reader, writer):
                is_chunked = number % 2 == 1
                writer.write(head("POST", "/v1/tasks", self.key, length="chunked" if is_chunked else BODY))
                sending = asyncio.create_task(send(writer, is_chunked))
                try:
                    self.note("bodies", self.refusal(await reader.readuntil(b"\r\n\r\n")))
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)

        await self.loop("bodies", 200, 60, once)

    async def connections(self):
        """More connections than there may be, each a stream of a task that waits; those refused ask again."""
        async def once(number):
            # At most so many readers of one task: the others hold those of the flood that wait, while they do.
            task = await self.waiting_task() if number < 64 else await self.own_waiting()
            async with opened(self.port) as (reader, writer):
                writer.write(head("GET", f"/v1/tasks/{task}/stream", self.key))
                self.note("connections", self.refusal(await reader.readuntil(b"\r\n\r\n")))
                while await reader.read(65536):
                    pass

        await self.loop("connections", 700, 150, once)

    async def own_waiting(self):
        """A task of its own that waits for long, in the conversation of the one that runs."""
        talk = (await self.waiting_task()).removesuffix("-waits")
        name = f"{talk}-{next(self.numbers) % 40}"
        body = {"prompt": "x", "max_tokens": 1, "session_id": talk, "task_id": name, "model_ref": "chat"}
        await ask(self.port, head("POST", "/v1/tasks", self.key, body=json.dumps(body).encode()), LIMIT_S)
        return name

    async def silent(self):
        """Connections that say nothing, or half a head."""
        async def once(number):
            async with opened(self.port) as (reader, writer):
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: " if number % 2 else b"")
                await reader.read(1)
                self.note("silent", "closed")

        await self.loop("silent", 500, 300, once)

    async def unread(self):
        """Streams of tasks with much to say that are never read."""
        async def once(_):
            body = json.dumps({"prompt": "x", "max_tokens": 20_000, "model_ref": "chat"}).encode()
            with socket.socket() as narrow:
                narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                narrow.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(narrow, (HOST, self.port))
                await loop.sock_sendall(narrow, head("POST", "/v1/tasks", self.key, body=body,
                                                     accept="text/event-stream"))
                self.note("unread", self.refusal(await loop.sock_recv(narrow, 400)))
                await asyncio.sleep(20)

        await self.loop("unread", 60, 10, once)

    async def flood(self):
        """Tasks of one token with ids of its own choice."""
        async def once(_):
            await self.submit("flood", {"prompt": "x", "max_tokens": 1, "task_id": f"flood-{next(self.numbers)}",
                                        "on_disconnect": "keep"})
        await self.loop("flood", 64, 300, once)

    async def talks(self):
        """A new conversation for each task."""
        async def once(_):
            await self.submit("talks", {"prompt": "x", "max_tokens": 1, "session_id": f"talk-{next(self.numbers)}"})
        await self.loop("talks", 32, 100, once)

    async def prompts(self):
        """Tasks with prompts of nearly a mebibyte, which wait and are remembered."""
        body = json.dumps({"prompt": "wide " * 200_000, "max_tokens": 1, "model_ref": "chat"}).encode()

        async def once(_):
            async with opened(self.port) as (reader, writer):
                writer.write(head("POST", "/v1/tasks", self.key, body=body))
                self.note("prompts", self.refusal(await reader.readuntil(b"\r\n\r\n")))

        await self.loop("prompts", 16, 20, once)

    async def staying(self, what, workers, per_s, request):
        """The same request again and again on connections that stay."""
        async def once(_):
            async with opened(self.port) as (reader, writer):
                while True:
                    await pace.turn()
                    writer.write(request())
                    self.note(what, self.refusal(await answer_on(reader)))

        pace = Pace(per_s * self.rate)
        await self.loop(what, workers, 100, once)

    async def explain(self):
        """Why a task waits, on 64 connections in a loop."""
        await self.waiting_task()
        request = lambda: head("GET", f"/v1/tasks/{self.waiting}/explain", self.key, keep=True)
        await self.staying("explain", 64, 400, request)

    async def refusals(self):
        """Pools with endless names, which its key may not even see."""
        request = head("GET", f"/v1/pools/p{'x' * 8000}/health", self.key, keep=True)
        await self.staying("refusals", 16, 400, lambda: request)

    async def quotes(self):
        """Models with names of a megabyte, to be quoted in the refusal."""
        body = json.dumps({"prompt": "x", "model_ref": "\"\\\u00fc" * 200_000}).encode()
        request = head("POST", "/v1/tasks", self.key, body=body, keep=True)
        await self.staying("quotes", 8, 15, lambda: request)

    async def vectors(self):
        """Embeddings of as many inputs as there may be."""
        body = {"workload": "embedding", "model_ref": "vectors", "inputs": ["some words to embed"] * 2048}
        await self.loop("vectors", 16, 20, lambda _: self.submit("vectors", body))

    async def pages(self):
        """The dashboard's pages again and again on one connection, without a key and without reading any."""
        request = head("GET", "/dashboard/dashboard.css", keep=True) * 2000

        async def once(_):
            with socket.socket() as narrow:
                narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                narrow.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(narrow, (HOST, self.port))
                await loop.sock_sendall(narrow, request)  # It takes no more requests than it can answer.
                self.note("pages", "all taken")
                await asyncio.sleep(LIMIT_S)

        await self.loop("pages", 450, 60, once)


ALL = ["bodies", "connections", "silent", "unread", "flood", "talks", "prompts", "explain", "refusals", "quotes",
       "vectors"]
MORE = ["pages"]


class Pace:
    """Turns at a rate, for all who ask; what was not taken in time is not made up for."""

    def __init__(self, per_s):
        self.gap, self.next = 1 / per_s, 0.0

    async def turn(self):
        now = time.monotonic()
        self.next = max(self.next + self.gap, now)
        await asyncio.sleep(self.next - now)


async def run(told):
    neighbour, stop = Neighbour(told), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    begun, wanted = time.monotonic(), told["only"].split(",")
    jobs = [asyncio.create_task(getattr(neighbour, name)()) for name in wanted]
    if {"connections", "explain"} & set(wanted):
        jobs.append(asyncio.create_task(neighbour.keep_waiting()))
    until = asyncio.create_task(stop.wait())
    ended, _ = await asyncio.wait([until, *jobs], return_when=asyncio.FIRST_COMPLETED)
    for job in ended - {until}:
        job.result()  # It never ends by itself: this raises why it did.
    used = resource.getrusage(resource.RUSAGE_SELF)
    cores = (used.ru_utime + used.ru_stime) / (time.monotonic() - begun)
    print(json.dumps({"counts": neighbour.counts, "cores": cores}), flush=True)
    os._exit(0)  # Thousands of connections need not be ended one by one.


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    os.nice(told["nice"])
    asyncio.run(run(told))
