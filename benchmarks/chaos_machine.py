"""How busy the machine is while something is measured: processors and memory, from Linux' /proc."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


class Machine:
    """Looks on from the moment it is made."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._busy, self._all = self._ticks()
        self._least = self._available()

    def look(self) -> None:
        """Note what is to be noted now and then."""
        self._least = min(self._least, self._available())

    def facts(self) -> dict[str, float]:
        """Percent of all processors' time that was used since the beginning, and the least memory that was free."""
        busy, ticks = self._ticks()
        return {
            "processors used %": round(100 * (busy - self._busy) / max(1, ticks - self._all), 1),
            "least memory left GB": round(self._least / 1e6, 1),
        }

    def _ticks(self) -> tuple[int, int]:
        """(used, all) of all processors; idle and waiting for the disk are not used."""
        values = [int(value) for value in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values) - values[3] - values[4], sum(values)

    def _available(self) -> int:
        """Memory that programs could still get, kB."""
        lines = (self._proc / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
