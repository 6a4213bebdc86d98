"""The float16 counterpart that a bench compares with: it computes what its numbers say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call_here, fails
from cuda_emulation import Emulator
from transformers import LlamaConfig, LlamaForCausalLM

from shiftadd_tvm import backend, shapes
from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.benchmark import accounting, models
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.compiler import compile_model
from shiftadd_tvm.synthetic import HalfModel

TOKENS = [5, 9, 2, 7, 11, 3]
CODE = """import json, sys
from shiftadd_tvm.runtime.engine import Engine
session = Engine(sys.argv[1]).session()
tokens = json.loads(sys.argv[2])
rows = [session.prefill(tokens[:3]).copy(), *(session.decode(t).copy() for t in tokens[3:])]
print(json.dumps([row[0].tolist() for row in rows]))
"""


def compiled(folder: Path, target: Backend, **settings: object) -> Path:
    chosen = CompileSettings(verify=False, **settings)
    model = HalfModel(shapes.config(shapes.TINY))
    compile_model(model, folder / "app", target, chosen, version="test")
    return folder / "app"


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """The logits of torch, of the third token on."""
    made = HalfModel(shapes.config(shapes.TINY))
    model = LlamaForCausalLM(LlamaConfig(**shapes.config(shapes.TINY))).eval()
    weights = {name: torch.from_numpy(made.read(name)) for name in made.names()}
    for linear in made.linears():
        raw = made.raw(f"{linear}.weight").astype(np.float32)
        weights[f"{linear}.weight"] = torch.from_numpy(raw)
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0, 2:].numpy()


def logits(artifact: Path, environment: dict[str, str] | None = None) -> np.ndarray:
    command = [sys.executable, "-c", CODE, str(artifact), json.dumps(TOKENS)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return np.array(json.loads(child.stdout), np.float32)


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_it_computes_what_torch_computes(expected: np.ndarray, tmp_path: Path) -> None:
    artifact = compiled(tmp_path, backend.detect())
    check(logits(artifact), expected)
    made = HalfModel(shapes.config(shapes.TINY))
    manifest = Artifact(artifact).manifest
    assert manifest["quantization"]["bits"] == manifest["quantization"]["effective_bits"] == 16
    norms = 4 * sum(made.raw(name).size for name in made.names() if "norm" in name)
    matrices = made.linear_bytes() + 2 * made.raw("model.embed_tokens.weight").size
    padded = accounting.weight_bytes(Artifact(artifact)) - matrices - norms  # to whole vectors
    assert 0 <= padded < matrices // 20


def test_it_computes_the_same_on_the_emulated_gpu(expected: np.ndarray, tmp_path: Path) -> None:
    artifact = compiled(tmp_path, backend.load("cuda-sm90"), dump_ir=tmp_path / "dump")
    source = (tmp_path / "dump" / "kernels.cu").read_text()
    assert "lut_" not in source and "dense_kernel" in source
    emulator = Emulator(tmp_path / "gpu")
    kernels = emulator.kernels(source, "half")
    check(logits(artifact, emulator.environment(kernels)), expected)


def test_the_bench_measures_it(tmp_path: Path) -> None:
    sizes = ("--prompt-tokens", 8, "--new-tokens", 5, "--threads", 1)
    words = ["bench", "--synthetic", shapes.TINY, "--json", *sizes]
    child = call_here(*words, "--bits", 16, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    fields = json.loads(child.stdout)
    assert fields["bits"] == 16 and fields["decode_tokens_per_second"] > 0
    fails(call_here(*words, "--bits", 5, cwd=tmp_path), 2, "--bits is 5")


def test_it_takes_part_beside_a_coded_model(tmp_path: Path) -> None:
    artifact = compiled(tmp_path, backend.detect())
    request = models.Request(8, 5, 1, baselines=True, probe_bytes=1 << 22, beside=artifact)
    found = models.measure(artifact, request)["baselines"]["own-fp16"]
    assert found["ratio"] > 0 and found["prefill_ratio"] > 0
