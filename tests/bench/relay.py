"""A link with a long way: carries TCP and delivers each byte so much later, in order, as fast as it came."""

import asyncio
import threading

# Kernels without netem are common in containers and on small machines, and netem takes root; a relay takes
# neither. It delays what is said and not TCP's own handshake, which spares whoever connects to a device anew.


class Relay:
    """From a port of its own to `target`, half of `round_trip` seconds each way."""

    def __init__(self, target):
        self.target = target
        self.round_trip = 0.0
        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(asyncio.start_server(self.carry, "127.0.0.1", 0, limit=1 << 20))
        self.port = self.server.sockets[0].getsockname()[1]
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.hang_up(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        return False

    async def hang_up(self):
        self.server.close()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    async def carry(self, reader, writer):
        try:
            onwards = await asyncio.open_connection("127.0.0.1", self.target, limit=1 << 20)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(self.one_way(reader, onwards[1]), self.one_way(onwards[0], writer))
        except asyncio.CancelledError:
            # All of it is over, and whoever waits for this task is told enough.
            pass

    async def one_way(self, reader, writer):
        under_way = asyncio.Queue()

        async def deliver():
            while True:
                due, part = await under_way.get()
                await asyncio.sleep(max(0.0, due - self.loop.time()))
                if not part:
                    writer.close()
                    return
                writer.write(part)
                await writer.drain()

        delivering = self.loop.create_task(deliver())
        part = True
        try:
            while part:
                part = await reader.read(1 << 16)
                under_way.put_nowait((self.loop.time() + self.round_trip / 2, part))
        except OSError:
            under_way.put_nowait((self.loop.time(), b""))
        try:
            await delivering
        except OSError:
            writer.close()
