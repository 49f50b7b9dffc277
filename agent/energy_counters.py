"""Reads the energy counters of GPUs (NVML) and CPUs (RAPL).

NVML counts millijoules since the driver was loaded. GPUs older than Volta report
only instantaneous power, which is integrated between two readings. The package
`nvidia-ml-py` is optional; only the caller's `load` imports it. RAPL counts
microjoules and wraps around. Packages and DRAM are summed; `core` and `uncore`
are parts of a package, and `psys` includes all of them. A counter that cannot
be read raises OSError with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curtail.system.clock import Clock


class NvmlCounter:
    """The GPUs that this process may use.

    Args:
        nvml: the module `pynvml`, initialised.
        handles: name -> NVML handle.
        share: these GPUs as a fraction of all GPUs of the machine.
    """

    part = "gpu"

    def __init__(self, nvml: Any, handles: Mapping[str, Any], share: float, clock: Clock) -> None:
        self._nvml = nvml
        self._handles = dict(handles)
        self._clock = clock
        self._without = {name for name, handle in self._handles.items() if not self._counts(handle)}
        self._summed = dict.fromkeys(self._without, 0.0)  # J
        self._last: dict[str, tuple[float, float]] = {}  # name -> when, W
        self.share = share
        self.covers = tuple(self._handles)
        self.method = "nvml-power-integrated" if self._without else "nvml-total-energy"

    @staticmethod
    def open(load: Callable[[], Any], environ: Mapping[str, str], clock: Clock) -> NvmlCounter:
        """The counters of this machine.

        Args: environ: its CUDA_VISIBLE_DEVICES selects GPUs by number or UUID.
        Raises: OSError: no package, no driver, no GPU, or a selection that cannot be measured.
        """
        try:
            nvml = load()
        except ImportError:
            raise OSError("the package nvidia-ml-py is missing; install curtail[power]") from None
        try:
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
            names = [f"gpu{i} {_text(nvml.nvmlDeviceGetName(handle))}" for i, handle in enumerate(handles)]
        except nvml.NVMLError as error:
            raise OSError(f"NVML cannot be used: {error}") from None
        chosen = _visible(environ.get("CUDA_VISIBLE_DEVICES"), uuids)
        if not chosen:
            raise OSError("there is no GPU")
        return NvmlCounter(nvml, {names[i]: handles[i] for i in chosen}, len(chosen) / count, clock)

    def joules(self) -> float:
        """J of all GPUs since an arbitrary point. Raises: OSError."""
        now = self._clock.monotonic()
        try:
            total = 0.0
            for name, handle in self._handles.items():
                if name in self._without:
                    total += self._integrate(name, handle, now)
                else:
                    total += self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            return total
        except self._nvml.NVMLError as error:
            self._last.clear()
            raise OSError(f"NVML: {error}") from None

    def _counts(self, handle: Any) -> bool:
        try:
            self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except self._nvml.NVMLError:
            return False
        return True

    def _integrate(self, name: str, handle: Any, now: float) -> float:
        watts = self._nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
        at, before = self._last.get(name, (now, watts))
        self._summed[name] += (now - at) * (watts + before) / 2.0
        self._last[name] = (now, watts)
        return self._summed[name]


def _visible(choice: str | None, uuids: list[str]) -> list[int]:
    """The GPUs that CUDA_VISIBLE_DEVICES selects. As in CUDA, the list ends at the first that does not exist."""
    if choice is None:
        return list(range(len(uuids)))
    found = []
    for word in (part.strip() for part in choice.split(",")):
        if word.startswith("MIG-"):
            raise OSError("CUDA_VISIBLE_DEVICES names a MIG slice of a GPU, whose power cannot be measured separately")
        if word.isdecimal() and int(word) < len(uuids):
            found.append(int(word))
            continue
        matches = [index for index, uuid in enumerate(uuids) if word and uuid.startswith(word)]
        if len(matches) != 1:
            break
        found += matches
    return list(dict.fromkeys(found))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@dataclass(slots=True)
class _Zone:
    """One RAPL domain."""

    name: str
    file: Path
    range_uj: int
    last: int
    wrapped: int = 0

    def joules(self) -> float:
        value = _number(self.file)
        if value < self.last:
            self.wrapped += self.range_uj
        self.last = value
        return (self.wrapped + value) / 1e6


class RaplCounter:
    """CPU packages and their memory.

    Args: share: the fraction that is counted, if other jobs use the rest of the machine's GPUs.
    """

    method, part = "rapl", "host"

    def __init__(self, zones: list[_Zone], share: float) -> None:
        self._zones = zones
        self._share = share
        part = "" if share == 1.0 else f", {share:.0%} of it"
        self.covers = tuple(f"{zone.name}{part}" for zone in zones)

    @staticmethod
    def open(root: Path, share: float = 1.0) -> RaplCounter:
        """The counters under `root`, normally /sys/class/powercap.

        Raises: OSError: there are none, or they are not readable (most systems let only root read them).
        """
        zones = []
        for folder in sorted(root.glob("intel-rapl:*")):
            name = (folder / "name").read_text().strip()
            parent = folder.name.rpartition(":")[0]
            if not (name.startswith("package") or name == "dram"):
                continue
            label = name if name.startswith("package") else f"dram of {(root / parent / 'name').read_text().strip()}"
            try:
                zones.append(
                    _Zone(label, folder / "energy_uj", _number(folder / "max_energy_range_uj"),
                          _number(folder / "energy_uj"))
                )  # fmt: skip
            except PermissionError:
                raise OSError(f"RAPL cannot be read: only root may read {folder / 'energy_uj'}") from None
        if not zones:
            raise OSError(f"there is no RAPL under {root}")
        return RaplCounter(zones, share)

    def joules(self) -> float:
        """J of all domains since an arbitrary point. Raises: OSError."""
        return self._share * sum(zone.joules() for zone in self._zones)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except ValueError:
        raise OSError(f"{file} does not contain a number") from None
