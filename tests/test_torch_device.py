"""Calibration on another device than the processor: tensors meet on one device, names are checked."""

import subprocess
import sys
from pathlib import Path

import pytest
import second_device
import torch
from models import save_tiny

from shiftadd_tvm import torch_device
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.settings import QuantizeSettings

CALIBRATED = QuantizeSettings(method="shiftadd", calibration_tokens=64, mixed=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("device")
    source = save_tiny(folder / "source", max_position_embeddings=32)
    quantize(source, folder / "packed", QuantizeSettings(bits=3))
    return source, folder / "packed"


@pytest.mark.parametrize("stage", second_device.STAGES)
def test_tensors_of_a_stage_lie_on_one_device(models: tuple[Path, Path], stage: str) -> None:
    command = [sys.executable, second_device.__file__, *map(str, models), stage]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("gpu", CALIBRATED, "--device is 'gpu', expected cpu, cuda or cuda:N"),
        ("cuda:x", CALIBRATED, "expected cpu, cuda or cuda:N"),
        ("cuda", QuantizeSettings(), "--method alternating runs no model"),
        ("cuda:99", CALIBRATED, "finds [0-9]+ CUDA devices here"),
    ],
)
def test_a_device_that_cannot_be_used(
    models: tuple[Path, Path], tmp_path: Path, name: str, settings: QuantizeSettings, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        quantize(models[0], tmp_path / "out", settings, device=name)
    assert not list(tmp_path.iterdir())


def test_too_little_memory_says_so() -> None:
    with (
        pytest.raises(UsageError, match="cuda:1 has too little memory"),
        torch_device.enough_memory("cuda:1"),
    ):
        raise torch.OutOfMemoryError
