"""Target presets: which one this machine gets, by its features and, on ARM, by its processor."""

from pathlib import Path

import pytest

from shiftadd_tvm import backend, cpu
from shiftadd_tvm.errors import UnsupportedError

ARM = [name for name, preset in backend.presets().items() if preset.machine == "aarch64"]
# /proc/cpuinfo of machines that are sold: identification of each processor, features
A72 = "fp asimd evtstrm crc32 cpuid"
V8_2 = "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
V1 = f"{V8_2} sve jscvt fcma ilrcpc flagm i8mm bf16"
MACHINES = {
    "Raspberry Pi 4": ("arm-cortex-a72", A72, [0xD08] * 4),
    "Raspberry Pi 5": ("arm-cortex-a76", V8_2, [0xD0B] * 4),
    "RK3588, large and small cores": ("arm-cortex-a76", V8_2, [0xD05] * 4 + [0xD0B] * 4),
    "Graviton 2": ("arm-neoverse-n1", V8_2, [0xD0C]),
    "Graviton 3": ("arm-neoverse-v1", V1, [0xD40]),
    "one that we have no preset for": ("arm", V1, [0xD4F]),
    "a Cortex-A76 whose kernel hides what it has": ("arm", "fp asimd", [0xD0B]),
}


def on(monkeypatch: pytest.MonkeyPatch, folder: Path, flags: str, parts: list[int]) -> None:
    """Let this machine be another one."""
    one = "processor\t: {}\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU part\t: {:#x}\n\n"
    path = folder / "cpuinfo"
    path.write_text("".join(one.format(i, flags, part) for i, part in enumerate(parts)))
    found, identified = cpu.features(path), cpu.parts(path)
    assert identified == {(0x41, part) for part in parts}
    monkeypatch.setattr(cpu, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpu, "features", lambda *path: found)
    monkeypatch.setattr(cpu, "parts", lambda *path: identified)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_most_specific_that_matches(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, features, parts = MACHINES[machine]
    on(monkeypatch, tmp_path, features, parts)
    assert backend.detect().name == name


def test_another_processor_may_be_named_where_it_has_the_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, tmp_path, V1, [0xD4F])
    assert all(backend.load(name).runs_here() for name in ARM)


def test_features_that_a_processor_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, tmp_path, A72, [0xD08])
    assert [name for name in ARM if backend.load(name).runs_here()] == ["arm-cortex-a72", "arm"]
    assert "asimddp" in backend.load("arm-cortex-a76").missing_features()


def test_no_preset_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, tmp_path, "fp", [0xD08])
    with pytest.raises(UnsupportedError, match="No target preset runs"):
        backend.detect()


def test_all_arm_presets_share_one_packed_order() -> None:
    assert len({backend.load(name).order for name in ARM}) == 1


def test_x86_has_no_parts(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: some\nflags\t: avx2\n")
    assert cpu.parts(path) == cpu.parts(tmp_path / "absent") == frozenset()
