"""Energy: powercap on a fake sysfs tree, NVML as a fake module, the estimates against closed forms."""

import math
import pickle
import sys
import time
import types
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dstbench.suite.meters import energy
from dstbench.suite.meters.energy import CpuTime, Nvml, Rapl, Reading


def zone(root: Path, folder: str, name: str, microjoules: int = 0, limit: int = 262_143_328_850) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    return path / "energy_uj"


def use(counter: Path, joules: float) -> None:
    """Let a fake counter run on; it wraps at its own limit."""
    limit = int((counter.parent / "max_energy_range_uj").read_text())
    counter.write_text(f"{(int(counter.read_text()) + round(joules * 1e6)) % limit}\n")


def test_rapl_sums_packages_and_keeps_dram_apart(tmp_path):
    packages = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 1000 * i) for i in range(2)]
    dram = zone(tmp_path, "intel-rapl:0:1", "dram")
    others = [zone(tmp_path, "intel-rapl:0:0", "core"), zone(tmp_path, "intel-rapl:2", "psys")]
    others.append(zone(tmp_path, "intel-rapl-mmio:0", "package-0"))
    meters = [Rapl(tmp_path), Rapl(tmp_path, "dram")]
    for meter in meters:
        meter.start()
    for counter, joules in [(packages[0], 10.0), (packages[1], 5.5), (dram, 7.0), *((o, 100.0) for o in others)]:
        use(counter, joules)
    package, memory = (meter.stop() for meter in meters)
    assert package.joules == pytest.approx(15.5)
    assert memory.joules == pytest.approx(7.0)
    assert (package.component, package.source, package.scope) == ("cpu_package", "measured:rapl", "machine")
    assert memory.component == "dram"


def test_rapl_undoes_the_wrap_of_its_counter(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", microjoules=95_000_000, limit=100_000_000)
    meter = Rapl(tmp_path)
    meter.start()
    use(counter, 50.0)
    assert int(counter.read_text()) == 45_000_000
    assert meter.stop().joules == pytest.approx(50.0)


@given(st.integers(0, 99), st.lists(st.floats(0, 99), max_size=20))
def test_rapl_follows_any_number_of_wraps_that_it_looks_at(tmp_path_factory, first, used):
    root = tmp_path_factory.mktemp("powercap")
    counter = zone(root, "intel-rapl:0", "package-0", first * 10**6, limit=100 * 10**6)
    meter = Rapl(root)
    meter.start()
    for joules in used:
        use(counter, joules)
        meter.read()
    assert meter.stop().joules == pytest.approx(sum(used), abs=1e-4)


def test_rapl_thread_sees_wraps_between_start_and_stop(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", limit=100_000_000)
    meter = Rapl(tmp_path, poll=0.005)
    meter.start()
    for _ in range(3):
        use(counter, 60.0)
        seen, deadline = int(counter.read_text()), time.monotonic() + 10
        while meter._last[counter.parent] != seen and time.monotonic() < deadline:
            time.sleep(0.002)
    assert meter.stop().joules == pytest.approx(180.0)


def test_rapl_is_absent_with_the_reason(tmp_path, monkeypatch):
    assert "no folder" in Rapl(tmp_path / "powercap").available()
    counter = zone(tmp_path, "intel-rapl:0", "package-0")
    assert Rapl(tmp_path).available() is None
    assert "no zone of kind dram" in Rapl(tmp_path, "dram").available()
    counter.unlink()
    counter.mkdir()
    assert "directory" in Rapl(tmp_path).available()

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert "only root reads" in Rapl(tmp_path).available()


def test_a_counter_lost_during_the_run_gives_no_number(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0")
    meter = Rapl(tmp_path)
    meter.start()
    counter.unlink()
    reading = meter.stop()
    assert reading.joules is None
    assert "lost during the run" in reading.note


def test_misuse_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'gpu' is unknown; choose cpu_package or dram"):
        Rapl(tmp_path, "gpu")
    with pytest.raises(RuntimeError, match="call start"):
        CpuTime().stop()
    with pytest.raises(ValueError, match="watts_per_core is 0"):
        CpuTime(0)


@pytest.fixture
def gpu(monkeypatch):
    """A fake of nvidia-ml-py with one GPU; `gpu.millijoules` is its counter."""
    fake = types.ModuleType("pynvml")
    fake.millijoules, fake.open, fake.asked = 5_000_000, 0, []
    fake.NVMLError = type("NVMLError", (Exception,), {})

    def handle(key):
        if key not in (0, "GPU-1234"):
            raise fake.NVMLError("Not Found")
        fake.asked.append(key)
        return "handle"

    def energy_of(handle):
        assert fake.open == 1, "read outside nvmlInit and nvmlShutdown"
        return fake.millijoules

    fake.nvmlInit = lambda: setattr(fake, "open", fake.open + 1)
    fake.nvmlShutdown = lambda: setattr(fake, "open", fake.open - 1)
    fake.nvmlDeviceGetHandleByIndex = fake.nvmlDeviceGetHandleByUUID = handle
    fake.nvmlDeviceGetTotalEnergyConsumption = energy_of
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_nvml_reads_the_total_energy_counter(gpu):
    synchronised = []
    meter = Nvml(0, shared=True, synchronise=lambda: synchronised.append(gpu.millijoules))
    assert meter.available() is None
    meter.start()
    gpu.millijoules += 12_500
    reading = meter.stop()
    assert reading.joules == pytest.approx(12.5)
    assert (reading.component, reading.source, reading.scope) == ("gpu", "measured:nvml", "device")
    assert reading.shared
    assert "shorter than 5 s" in reading.note
    assert synchronised[-1] == gpu.millijoules
    assert gpu.open == 0


def test_nvml_reading_of_a_long_run_has_no_warning(gpu):
    meter = Nvml()
    meter.start()
    meter.began -= 5.0
    assert meter.stop().note == ""


def test_nvml_is_absent_with_the_reason(gpu, monkeypatch):
    assert "GPU 3: Not Found" in Nvml(3).available()
    assert gpu.open == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "install nvidia-ml-py" in Nvml().available()


def test_cuda_device_is_found_by_uuid_since_indices_differ(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: types.SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    found = energy.meters("cuda:0", shared=True, root=Path("/nowhere"))
    assert [m.source for m in found] == ["measured:nvml", "estimated:cpu-time"]
    assert set(gpu.asked) == {"GPU-1234"}


def test_cpu_time_is_seconds_of_this_process_times_watts():
    meter = CpuTime(watts_per_core=10.0)
    began = time.process_time()
    meter.start()
    while time.process_time() - began < 0.05:
        math.sqrt(2.0)
    reading = meter.stop()
    used = time.process_time() - began
    assert 0.4 <= reading.joules <= 10.0 * used
    assert (reading.source, reading.scope, reading.shared) == ("estimated:cpu-time", "process", False)
    assert "10 W per core" in reading.note and "cannot rank" in reading.note
    assert energy.WATTS_PER_CORE == 4.0


def test_cpu_time_does_not_run_while_the_process_sleeps():
    meter = CpuTime(watts_per_core=1.0)
    meter.start()
    time.sleep(0.2)
    assert meter.stop().joules < 0.1


def test_modelled_ops_is_the_table_of_horowitz():
    reading = energy.modelled_ops(flops=2e12, bytes=0)
    assert reading.joules == pytest.approx(4.6)  # 10^12 multiply-adds of 3.7 + 0.9 pJ
    assert energy.modelled_ops(0, 4).joules == pytest.approx(640e-12)  # one 32-bit word of DRAM
    assert (reading.component, reading.source, reading.scope) == ("ops", "modelled:ops", "process")
    assert "45 nm" in reading.note and "ISSCC 2014" in reading.note


def test_idle_baseline_is_watts_over_one_window(tmp_path, monkeypatch):
    counter, now = zone(tmp_path, "intel-rapl:0", "package-0"), [0.0]

    def sleep(seconds):
        now[0] += seconds
        use(counter, 20.0 * seconds)

    monkeypatch.setattr(energy, "time", types.SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    meters = [Rapl(tmp_path), Rapl(tmp_path)]
    energy.baseline(meters, 0.0)
    assert meters[0].idle_watts is None
    energy.baseline(meters, 0.5)
    assert [m.idle_watts for m in meters] == [pytest.approx(20.0)] * 2
    assert now[0] == 0.5
    meters[0].start()
    use(counter, 3.0)
    assert meters[0].stop().joules == pytest.approx(3.0)  # gross, and without the window


def test_meters_picks_what_is_there(tmp_path):
    found = energy.meters("cpu", shared=False, watts_per_core=7.0, root=tmp_path / "none")
    assert [m.source for m in found] == ["estimated:cpu-time"]
    assert found[0].watts_per_core == 7.0
    zone(tmp_path, "intel-rapl:0", "package-0")
    found = energy.meters("cpu", shared=True, root=tmp_path)
    assert [(m.component, m.shared) for m in found] == [("cpu_package", True), ("process", False)]
    assert found[0].idle_watts is None  # others are running: nothing is idle
    found = energy.meters("cpu", shared=False, idle=0.01, root=tmp_path)
    assert found[0].idle_watts == 0.0
    assert len(pickle.loads(pickle.dumps(found))) == 2


def test_unavailable_names_each_meter_and_its_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    lines = energy.unavailable(root=tmp_path / "none")
    assert [line.split(":")[0] + ":" + line.split(":")[1].split()[0] for line in lines] == [
        "measured:rapl",
        "measured:rapl",
        "measured:nvml",
    ]
    assert "nvidia-ml-py" in lines[2]
    assert len(energy.unavailable("cuda", root=tmp_path / "none")) == 3


def reading(component="gpu", joules=1.0, source="measured:nvml", **more) -> Reading:
    return Reading(component, joules, source, "device", **more)


def test_sittings_add_up_by_component_and_source(tmp_path):
    earlier = [asdict(reading(joules=10.0, idle_watts=30.0)), asdict(reading("process", 4.0, "estimated:cpu-time"))]
    torch.save(earlier, tmp_path / "checkpoint.pt")
    earlier = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    gpu, process = energy.add(
        [reading(joules=2.5, shared=True), reading("process", 1.0, "estimated:cpu-time")], earlier
    )
    assert (gpu.joules, gpu.idle_watts, gpu.shared, gpu.note) == (12.5, 30.0, True, "")
    assert process.joules == 5.0
    assert energy.add([gpu], []) == [gpu]


def test_sources_are_never_mixed_and_a_gap_is_named():
    earlier = [asdict(reading("process", 4.0, "measured:rapl"))]
    for _ in range(2):
        total = energy.add([reading("process", 1.0, "estimated:cpu-time")], earlier)
        earlier = [asdict(r) for r in total]
    assert [(r.source, r.joules) for r in total] == [("measured:rapl", 4.0), ("estimated:cpu-time", 2.0)]
    assert all(r.note.count("covers a part of the run only") == 1 for r in total)


def test_a_sitting_without_a_number_leaves_the_sum_unknown():
    assert energy.add([reading(joules=None, note="lost")], [asdict(reading())])[0].joules is None


def test_state_while_running_is_plain_and_continues(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0")
    meter = Rapl(tmp_path)
    meter.start()
    use(counter, 2.0)
    saved = energy.state([meter], [])
    assert saved[0]["joules"] == pytest.approx(2.0)
    assert all(v is None or isinstance(v, str | float | bool) for v in saved[0].values())
    use(counter, 1.0)
    assert meter.stop().joules == pytest.approx(3.0)
    assert energy.add([reading("cpu_package", 5.0, "measured:rapl")], saved)[0].joules == pytest.approx(7.0)
