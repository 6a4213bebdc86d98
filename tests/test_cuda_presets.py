"""SmolLM2-135M at 3 bits for every GPU, on a machine without one; its weights are made up."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import cuda_ptx
import pytest
import tvm
from tvm import relax

from shiftadd_tvm import backend, compiler, overlapping_launches, pipeline, shapes, synthetic
from shiftadd_tvm.artifact import LIBRARY, Artifact
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.compiler import compile_model
from shiftadd_tvm.cuda import codegen, nvrtc
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.fused_producers import FuseProducers
from shiftadd_tvm.ops import OP
from shiftadd_tvm.relax_functions import bindings_of
from shiftadd_tvm.settings import QuantizeSettings

PRESETS = [name for name, preset in backend.presets().items() if preset.device]
E_MACHINE, CUDA_MACHINE = slice(18, 20), 190  # where an ELF file names its machine; EM_CUDA


def device_images(library: bytes) -> list[bytes]:
    """Return what begins like machine code for a GPU inside of a library."""
    parts = [library[at:] for at in _places(library, nvrtc.ELF)]
    return [part for part in parts if int.from_bytes(part[E_MACHINE], "little") == CUDA_MACHINE]


def _places(data: bytes, what: bytes) -> list[int]:
    found, at = [], data.find(what)
    while at >= 0:
        found.append(at)
        at = data.find(what, at + 1)
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_smollm2_at_3_bits_compiles(name: str, tmp_path: Path) -> None:
    """Whole, for one sequence: real machine code of that architecture, and nothing spills."""
    target, dump = backend.load(name), tmp_path / "dump"
    config = shapes.config("smollm2-135m")
    model = synthetic.SyntheticModel(config, QuantizeSettings(bits=3, embedding_bits=8))
    settings = CompileSettings(sequences=1, dump_ir=dump, verify=False)
    report = compile_model(model, tmp_path / "app", target, settings, version="test")
    assert report.kernels["fallback"] == 0 and report.kernels["scheduled"] > 40
    library = (tmp_path / "app" / LIBRARY).read_bytes()
    assert codegen.SOURCE_MARK not in library and len(device_images(library)) == 1
    assert f".target {target.device}" in (dump / "kernels.ptx").read_text()
    usage = nvrtc.usage((dump / "kernels.log").read_text())
    assert len(usage) > 40 and not {k for k, used in usage.items() if used.spill_bytes}
    manifest = Artifact(tmp_path / "app").manifest
    assert manifest["target"]["device"] == target.device and manifest["verified"] is False
    assert manifest["activations"] == {"lut_query": target.activations[0]}


def one_layer(wide: str, name: str, folder: Path, **settings: Any) -> tuple[Path, bytes]:
    """Compile a layer of SmolLM2 whose MLP is as wide as that of another model, for a preset; return the
    folder of its dump, and the library."""
    width = {"intermediate_size": shapes.config(wide)["intermediate_size"]}
    config = shapes.config("smollm2-135m") | width | {"num_hidden_layers": 1}
    model = synthetic.SyntheticModel(config, QuantizeSettings(bits=3, embedding_bits=8))
    given = CompileSettings(sequences=1, dump_ir=folder / "dump", verify=False, **settings)
    compile_model(model, folder / "app", backend.load(name), given, version="test")
    return folder / "dump", (folder / "app" / LIBRARY).read_bytes()


@pytest.mark.parametrize(
    ("name", "wide"), [("cuda-sm90", "llama-2-7b"), *((name, "llama-2-70b") for name in PRESETS)]
)
def test_a_long_row_has_a_warp_for_each_run(name: str, wide: str, tmp_path: Path) -> None:
    """Two kernels of blocks of a warp each, however long the row: nothing spills, nobody waits at a
    barrier for other warps."""
    dump, library = one_layer(wide, name, tmp_path)
    usage = nvrtc.usage((dump / "kernels.log").read_text())
    assert not {k for k, used in usage.items() if used.spill_bytes}
    (second,) = (k for k in usage if k.startswith("produce") and k.endswith("_kernel_1"))
    first = second.removesuffix("_1")
    source = (dump / "kernels.cu").read_text()
    assert all(f"__launch_bounds__(32, 1) {kernel}(" in source for kernel in (first, second))
    code = cuda_ptx.machine_code(device_images(library)[0], tmp_path)
    assert not any("BAR." in line for line in code[first])
    assert len(code[first]) < 2000 and len(code[second]) < 1000


@pytest.mark.parametrize("wide", ["smollm2-135m", "llama-2-7b"])
def test_launches_overlap_and_nobody_reads_before_the_wait(wide: str, tmp_path: Path) -> None:
    """Every kernel lets the next one begin and waits once; before, it reads parameters at most."""
    dump, library = one_layer(wide, "cuda-sm90", tmp_path, launches="overlapping")
    kernels = cuda_ptx.kernels((dump / "kernels.ptx").read_text())
    assert len(kernels) > 40 and library.count(overlapping_launches.TAG.encode()) == len(kernels)
    memory = re.compile(r"\b(ld|st|red|atom)\.global")
    begins = {name for name in kernels if re.fullmatch(r"produce\d*_kernel", name)}
    for name, body in kernels.items():
        assert body.count("griddepcontrol.wait") == body.count("launch_dependents") == 1, name
        before = body.partition("griddepcontrol.wait")[0]
        reads = set(memory.findall(before))
        assert reads == ({"ld"} if name in begins else set()), name
        assert ("prefetch" in before) == name.startswith("lut_bits_query"), name
    for name, code in cuda_ptx.machine_code(device_images(library)[0], tmp_path).items():
        wait = next(i for i, line in enumerate(code) if "ACQBULK" in line)
        early = [line for line in code[:wait] if re.search(r"\b(LDG|STG|ATOM|RED)\b", line)]
        # the assembler moves loads of planes, which are never kept, before it
        assert name in begins or all("LDG.E.NA" in line for line in early), name


def test_launches_overlap_on_gpus_that_can() -> None:
    for name in ("cuda-sm89", "x86-avx2"):
        with pytest.raises(UsageError, match=f"is for GPUs from sm_90 on, not for {name}"):
            backend.load(name).launching("overlapping")
    assert backend.load("cuda-sm120").launching("overlapping").overlap


ONE_WIDTH = {
    "llama": shapes.config("smollm2-135m"),
    "qwen3": shapes.config("smollm2-135m") | {"model_type": "qwen3", "head_dim": 64},
    "opt": shapes.config("opt-125m"),
}


@pytest.mark.parametrize("family", ONE_WIDTH)
def test_a_layer_of_one_width_is_nine_kernels(family: str) -> None:
    """Four that make activations ready, four look-ups, and attention, which normalizes and turns heads
    where a family wants it, and fills the cache."""
    target = backend.load("cuda-sm90")
    model = synthetic.SyntheticModel(ONE_WIDTH[family], QuantizeSettings(bits=3, embedding_bits=8))
    module, _ = compiler.relax_module(model, target, "fixed16", (1,))
    prepared = [*(step() for step in pipeline.PREPARE), FuseProducers(target.shared)]
    module = tvm.transform.Sequential(prepared)(module)
    calls = (b.value for b in bindings_of(module["decode_b1"]) if isinstance(b.value, relax.Call))
    called = (c.args[0] for c in calls if getattr(c.op, "name", "").startswith("relax.call_tir"))
    counts = Counter(str(module[variable].attrs[OP]) for variable in called)
    layers = model.decoder.layers
    each = {name: n / layers for name, n in counts.items() if n >= layers}
    assert each == {"produce": 4, "lut_bits_query": 4, "attend_parts": 1}
