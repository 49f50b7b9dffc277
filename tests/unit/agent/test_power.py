"""Measured power: GPUs by NVML, the host by RAPL, and what is said where neither can be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from doubles import FakeClock

from agent.energy_counters import RaplCounter
from agent.power import ConstantMeter, CounterMeter, choose_meter


class NVMLError(Exception):
    pass


class FakeNvml:
    """The few calls of pynvml that are used."""

    NVMLError = NVMLError

    def __init__(self, gpus: int = 2, counts: bool = True, driver: bool = True) -> None:
        self.gpus, self.counts, self.driver = gpus, counts, driver
        self.mj = [0] * gpus
        self.mw = [0] * gpus
        self.lost = False

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}aaa".encode()

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "H200"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if not self.counts or self.lost:
            raise NVMLError("Not Supported")
        return self.mj[handle]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self.mw[handle]


def missing() -> object:
    raise ImportError("no pynvml")


def rapl(root: Path, zones: dict[str, tuple[str, int]], range_uj: int = 1_000_000_000) -> Path:
    for folder, (name, energy) in zones.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (root / folder / "energy_uj").write_text(f"{energy}\n")
    return root


HOST = {
    "intel-rapl:0": ("package-0", 5_000_000),
    "intel-rapl:0:0": ("core", 4_000_000),
    "intel-rapl:0:1": ("dram", 1_000_000),
    "intel-rapl:1": ("psys", 9_000_000),
}


def add(root: Path, folder: str, joules: float) -> None:
    file = root / folder / "energy_uj"
    file.write_text(str(int(file.read_text()) + int(joules * 1e6)))


def test_gpus_and_host_are_added_over_the_interval(tmp_path):
    clock, nvml, root = FakeClock(), FakeNvml(), rapl(tmp_path, HOST)
    meter = choose_meter(clock, {}, load=lambda: nvml, rapl=root)
    assert meter.watts() is None, "no interval yet"
    clock.t += 2.0
    nvml.mj[0] += 1_000_000  # 1000 J in 2 s
    nvml.mj[1] += 400_000
    add(root, "intel-rapl:0", 200.0)
    add(root, "intel-rapl:0:1", 20.0)
    add(root, "intel-rapl:0:0", 150.0)  # a part of the package
    add(root, "intel-rapl:1", 900.0)  # repeats everything
    assert meter.watts() == pytest.approx(500 + 200 + 100 + 10)
    found = meter.measure()
    assert found.method == "nvml-total-energy+rapl" and found.whole
    assert found.covers == ("gpu0 H200", "gpu1 H200", "package-0", "dram of package-0")


def test_a_question_right_after_another_gets_the_same_answer(tmp_path):
    clock, nvml = FakeClock(), FakeNvml(1)
    meter = choose_meter(clock, {}, host_w=100.0, load=lambda: nvml, rapl=tmp_path)
    meter.watts()
    clock.t += 1.0
    nvml.mj[0] += 300_000
    assert meter.watts() == pytest.approx(400.0)
    clock.t += 0.1
    assert meter.watts() == pytest.approx(400.0)
    assert meter.measure().method == "nvml-total-energy+constant"


def test_gpus_alone_do_not_speak_for_the_machine_but_are_told_apart(tmp_path):
    clock, nvml = FakeClock(), FakeNvml(1)
    meter = choose_meter(clock, {}, load=lambda: nvml, rapl=tmp_path)
    meter.watts()
    clock.t += 1.0
    nvml.mj[0] += 300_000
    assert meter.watts() is None
    found = meter.measure()
    assert found.watts == pytest.approx(300.0) and found.lacks == ("host",)
    assert "there is no RAPL" in meter.note


def test_counters_that_only_root_may_read_are_named(tmp_path, monkeypatch):
    root = rapl(tmp_path, HOST)
    read = Path.read_text

    def refuse(self: Path, *a: object, **k: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError("denied")
        return read(self, *a, **k)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = choose_meter(FakeClock(), {}, load=FakeNvml, rapl=root)
    assert "only root may read" in meter.note and meter.measure() is None


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (missing, "install curtail[power]"),
        (lambda: FakeNvml(driver=False), "Driver Not Loaded"),
        (lambda: FakeNvml(0), "there is no GPU"),
    ],
)
def test_without_gpus_that_can_be_measured_nothing_is_and_the_note_says_why(tmp_path, load, words):
    meter = choose_meter(FakeClock(), {}, load=load, rapl=rapl(tmp_path, HOST))
    assert isinstance(meter, ConstantMeter) and meter.watts() is None and meter.measure() is None
    assert words in meter.note


@pytest.mark.parametrize(
    ("choice", "covers", "share"),
    [(None, 4, 1.0), ("0,2", 2, 0.5), ("GPU-3", 1, 0.25), ("1,9,2", 1, 0.25)],
)
def test_only_the_visible_gpus_count_and_their_share_of_the_host(tmp_path, choice, covers, share):
    clock, root = FakeClock(), rapl(tmp_path, HOST)
    environ = {} if choice is None else {"CUDA_VISIBLE_DEVICES": choice}
    meter = choose_meter(clock, environ, load=lambda: FakeNvml(4), rapl=root)
    meter.measure()
    clock.t += 1.0
    add(root, "intel-rapl:0", 400.0)
    found = meter.measure()
    assert sum(name.startswith("gpu") for name in found.covers) == covers
    assert found.watts == pytest.approx(400.0 * share)


def test_part_of_a_gpu_is_not_measured(tmp_path):
    meter = choose_meter(FakeClock(), {"CUDA_VISIBLE_DEVICES": "MIG-1"}, load=FakeNvml, rapl=tmp_path)
    assert "a MIG slice of a GPU" in meter.note and meter.watts() is None


def test_gpus_without_a_counter_are_integrated(tmp_path):
    clock, nvml = FakeClock(), FakeNvml(1, counts=False)
    meter = choose_meter(clock, {}, host_w=0.0, load=lambda: nvml, rapl=tmp_path)
    nvml.mw[0] = 100_000
    meter.watts()
    clock.t += 10.0
    nvml.mw[0] = 300_000
    assert meter.watts() == pytest.approx(200.0)
    assert meter.measure().method.startswith("nvml-power")


def test_a_failing_counter_and_one_that_starts_anew_give_nothing_instead_of_a_guess(tmp_path):
    clock, nvml = FakeClock(), FakeNvml(1)
    nvml.mj[0] = 5_000_000
    meter = choose_meter(clock, {}, host_w=0.0, load=lambda: nvml, rapl=tmp_path)
    meter.watts()
    clock.t += 1.0
    nvml.mj[0] = 1_000
    assert meter.watts() is None, "the driver was loaded anew"
    clock.t += 1.0
    nvml.lost = True
    assert meter.watts() is None
    nvml.lost = False
    clock.t += 1.0
    assert meter.watts() is None, "an interval begins"
    clock.t += 1.0
    nvml.mj[0] += 50_000
    assert meter.watts() == pytest.approx(50.0)
    clock.t += 601.0
    assert meter.watts() is None, "counters may have wrapped more than once"


def test_rapl_goes_on_where_it_wraps_around(tmp_path):
    root = rapl(tmp_path, {"intel-rapl:0": ("package-0", 999_000_000)}, range_uj=1_000_000_000)
    counter = RaplCounter.open(root)
    before = counter.joules()
    (root / "intel-rapl:0" / "energy_uj").write_text("2000000")
    assert counter.joules() - before == pytest.approx(3.0)
    (root / "intel-rapl:0" / "energy_uj").write_text("nonsense")
    with pytest.raises(OSError, match="does not contain a number"):
        counter.joules()


def test_a_constant_is_labelled_as_one():
    found = ConstantMeter(700.0).measure()
    assert (found.watts, found.method) == (700.0, "constant")


def test_a_meter_of_any_counter_tells_the_mean():
    clock = FakeClock()
    counter = SimpleNamespace(method="meter", part="whole", covers=("rack",), joules=lambda: 50.0 * clock.t)
    meter = CounterMeter([counter], clock)
    meter.watts()
    clock.t += 7.0
    assert meter.watts() == pytest.approx(50.0)
