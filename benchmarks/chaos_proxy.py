"""A TCP proxy on loopback that can cut, slow and corrupt what passes: one for each site, in front of the controller.

Runs in a thread with an event loop of its own. Units: bytes, seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass

PIECE = 16 * 1024


@dataclass(slots=True)
class Weather:
    """What the line does at the moment; set from outside, read for each piece."""

    cut: bool = False  # nothing passes and nothing is accepted
    bytes_per_s: float = 0.0  # 0: no limit
    flip_every: int = 0  # one bit in every so many bytes towards the controller; 0: none


class Proxy:
    """Listens on a free port of loopback and passes everything on to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.weather = Weather()
        self.port = 0
        self.flipped = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._ready.wait()

    def set(self, weather: Weather) -> None:
        """Change the weather; a cut line loses its connections without a farewell."""
        self.weather = weather
        if weather.cut:
            self._loop.call_soon_threadsafe(self._drop)

    def close(self) -> None:
        """Drop every connection and stop to listen."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        listener.close()
        self._drop()
        for left in asyncio.all_tasks(self._loop):
            left.cancel()
        self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        self._loop.close()

    def _drop(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.weather.cut:
                return
            there, back = await asyncio.open_connection(*self.target)
            self._writers.add(back)
            try:
                await asyncio.gather(self._pass_on(reader, back, True), self._pass_on(there, writer, False))
            finally:
                self._writers.discard(back)
                back.transport.abort()
        except OSError:
            return  # the controller is down: the site sees a closed connection, as it would without a proxy
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upwards: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                weather = self.weather
                if weather.cut:
                    break
                if weather.bytes_per_s > 0:
                    await asyncio.sleep(len(piece) / weather.bytes_per_s)
                if upwards and weather.flip_every > 0:
                    piece = self._flip(piece, weather.flip_every)
                writer.write(piece)
                await writer.drain()
            if self.weather.cut:
                writer.transport.abort()
            elif not writer.is_closing():
                writer.write_eof()

    def _flip(self, piece: bytes, every: int) -> bytes:
        changed = bytearray(piece)
        for index in range(min(every, len(changed)) - 1, len(changed), every):
            changed[index] ^= 0x10
            self.flipped += 1
        return bytes(changed)
