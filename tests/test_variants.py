"""Every configuration of the LLaMA family that the issue names, compiled and passed by the gate.

The gate compares with transformers' own forward pass of the dequantized model, so a variant that is
built wrongly cannot pass: `compile_model` raises. It runs one sequence at a time, so the variants are
compiled for one; the tiny model of all tests is compiled for more, and decodes them together here.
"""

import shutil
from pathlib import Path

import kernels
import numpy as np
import pytest
from conftest import POSITIONS, Tiny
from models import save_tiny

from shiftadd_tvm import __version__, backend, cpu
from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.benchmark import accounting
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.compiler import compile_model
from shiftadd_tvm.errors import GateError, UsageError
from shiftadd_tvm.packed import GOLDEN, open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.runtime import engine as engine_module
from shiftadd_tvm.runtime.engine import Engine, Sampling, decode
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.tensorfile import TensorFile, write_tensors
from shiftadd_tvm.verification import RELATIVE, compare, run_batches, run_golden, verify_here

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "untied-bias-llama3": (
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_scaling": LLAMA3,
            "rope_theta": 500000.0,
        },
        {"bits": 3},
        "F32",
    ),
    "multi-head-bf16-one-bit": (
        {"num_key_value_heads": 4, "head_dim": 10, "hidden_size": 40, "intermediate_size": 72},
        {"bits": 1},
        "BF16",
    ),
    "one-kv-head-8-bit-embeddings": (
        {"num_key_value_heads": 1, "head_dim": 32, "num_hidden_layers": 1},
        {"bits": 4, "embedding_bits": 8},
        "F32",
        "int8",
    ),
    "linear-rope-f16-mixed-bits": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "num_hidden_layers": 1},
        {"bits": 2, "bits_per_module": {"self_attn.v_proj": 4, "mlp.down_proj": 3}},
        "F16",
        "float32",
    ),
    "no-rotation-odd-sizes": (
        {"hidden_size": 52, "intermediate_size": 37, "head_dim": 6, "num_hidden_layers": 1},
        {"bits": 2, "max_rotation": 0},
        "F32",
    ),
    "row-group": (
        {"num_hidden_layers": 1},
        {"bits": 2, "scale_format": "row-group", "columns": 32},
        "F32",
    ),
    "row-group-float32": (
        {"num_hidden_layers": 1},
        {"bits": 2, "scale_format": "row-group", "columns": 32},
        "F32",
        "float32",
    ),
    "row-group-fallback": (  # 12 inputs share a scale: not whole steps
        {"num_hidden_layers": 1},
        {"bits": 2, "scale_format": "row-group", "columns": 12},
        "F32",
    ),
    "column-wise": ({"num_hidden_layers": 1}, {"bits": 2, "scale_format": "column-wise"}, "F32"),
    "block-wise": (
        {"num_hidden_layers": 1},
        {"bits": 2, "scale_format": "block-wise", "max_rotation": 0},
        "F32",
    ),
}

WITHOUT_FAST_FORM = {"row-group-fallback", "column-wise", "block-wise"}  # nothing is rounded
EQUAL = RELATIVE["float32"]  # of what ways to compute the same may differ in, in any format


def build(
    folder: Path,
    overrides: dict,
    chosen: dict,
    dtype: str,
    activations: str = "int16",
    cache: str = "float32",
) -> Path:
    """Quantize and compile a tiny model for one sequence; the gate has passed."""
    source = save_tiny(folder / "source", dtype=dtype, **overrides)
    quantize(source, folder / "packed", QuantizeSettings(**chosen))
    report = compile_model(
        open_packed(folder / "packed"),
        folder / "artifact",
        backend.detect(),
        CompileSettings(sequences=1, activations=activations, cache=cache),
        version="test",
    )
    assert report.verify is not None
    # the tolerance of int8 leaves no token of random weights decided: there the logits have to do
    assert report.verify["tokens_compared"] > 0 or activations == "int8"
    return folder / "artifact"


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_passes_the_gate(name: str, tmp_path: Path) -> None:
    """Quantize, compile, verify, generate."""
    artifact = build(tmp_path, *VARIANTS[name])
    asked = VARIANTS[name][3] if len(VARIANTS[name]) > 3 else "int16"
    held = Artifact(artifact).activations()  # decides about the tolerance of the gate
    assert held == ("float32" if name in WITHOUT_FAST_FORM else asked)
    session = Engine(artifact).session()
    assert len(list(session.generate([5, 6, 7], 4, Sampling(temperature=1.0, seed=1)))) <= 4


def test_a_cache_of_whole_numbers(tmp_path: Path) -> None:
    """A byte a number and one a head for its exponent; forks and cuts go on as fresh sequences do."""
    path = build(tmp_path, {}, {"bits": 4}, "F32", "float32", "int8")
    artifact = Artifact(path)
    model = artifact.manifest["model"]
    heads = model["layers"] * model["kv_heads"]
    assert artifact.cache() == "int8"
    assert accounting.cache_bytes(artifact, 1) == 2 * heads * (model["head_dim"] + 1)
    ids = np.random.default_rng(2).integers(3, 250, 40).tolist()
    session = Engine(artifact, sequences=2).session()
    session.prefill(ids)
    fork = session.fork()
    expected = [session.decode(7), session.decode(8)]
    np.testing.assert_array_equal(fork.decode(7), expected[0])
    fork.truncate(len(ids))
    fork.decode(7)
    np.testing.assert_array_equal(fork.decode(8), expected[1])


def test_prefill_in_chunks_equals_decode(tiny: Tiny) -> None:
    """A prompt longer than a chunk gives the logits that decoding it token by token gives."""
    engine = Engine(tiny.artifact)
    ids = np.random.default_rng(0).integers(3, 250, engine.chunk + 50).tolist()
    session = engine.session()
    chunked = session.prefill(ids)
    session.close()
    for token in ids:
        logits = session.decode(token)
    assert compare(logits, chunked, EQUAL).passed


def test_several_sequences_do_not_disturb_each_other(tiny: Tiny) -> None:
    """Sequences of different lengths decoded together give what each gives alone."""
    engine = Engine(tiny.artifact, sequences=4)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 250, length).tolist() for length in (1, 16, 17, 40)]
    alone = []
    for prompt in prompts:
        session = engine.session()
        session.prefill(prompt)
        alone.append(session.decode(9))
        session.close()
    sessions = [engine.session() for _ in prompts]
    for session, prompt in zip(sessions, prompts, strict=True):
        session.prefill(prompt)
    assert compare(np.concatenate(alone), decode(sessions, [9] * 4), EQUAL).passed
    pair = [sessions[0], sessions[3]]
    again = decode(pair, [11, 12])
    held = (prompts[0], prompts[3])
    for session, prompt, logits, token in zip(pair, held, again, (11, 12), strict=True):
        session.close()
        session.prefill([*prompt, 9])
        assert compare(session.decode(token), logits[None], EQUAL).passed


def test_the_gate_runs_every_function_that_decodes(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill and steps of one are right: a batch of four that mixes up two sequences does not pass."""
    ids, logits = Artifact(tiny.artifact).golden()
    engine = Engine(tiny.artifact, sequences=4)
    runs = run_batches(engine, ids, logits)
    assert len(runs) == 1 + -(-4 // len(ids))
    *_, by_decode = run_golden(engine, ids)
    for run in runs:
        assert (run[:, 4:] == logits[:, 4:]).all()
        changed = (run != logits).any(axis=(1, 2))
        assert changed.any() and compare(by_decode[changed, :4], run[changed, :4], EQUAL).passed
    right = engine_module.decode
    mixed = lambda sessions, tokens: np.roll(right(sessions, tokens), len(tokens) == 4, axis=0)
    assert verify_here(tiny.artifact).passed
    monkeypatch.setattr(engine_module, "decode", mixed)
    assert not verify_here(tiny.artifact).passed


def test_eight_sequences_where_they_are_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    """One step of all of them gives what each gives alone; nine are more than the artifact takes."""
    model, output = open_packed(tiny.packed), tmp_path / "app"
    compile_model(model, output, backend.detect(), CompileSettings(sequences=8), version="test")
    engine = Engine(output, sequences=10)
    assert engine.batches == [1, 2, 4, 8]
    prompts = [[5, 9, 2 + i, *range(3, 3 + i)] for i in range(9)]
    sessions, others = ([engine.session() for _ in prompts[:n]] for n in (9, 1))
    for session, prompt in zip(sessions, prompts, strict=True):
        session.prefill(prompt)
    found = decode(sessions[:8], [9] * 8)
    for prompt, logits in zip(prompts, found, strict=False):
        others[0].truncate(0)
        others[0].prefill(prompt)
        assert compare(others[0].decode(9), logits[None], EQUAL).passed
    with pytest.raises(UsageError, match="1, 2, 4, 8"):
        decode(sessions, [9] * 9)


def test_sessions_say_what_they_cannot_do(tiny: Tiny) -> None:
    """Too long, outside the vocabulary, empty: one sentence each."""
    session = Engine(tiny.artifact).session()
    with pytest.raises(UsageError, match="context"):
        session.prefill([5] * (POSITIONS + 1))
    with pytest.raises(UsageError, match="vocabulary"):
        session.prefill([259])
    with pytest.raises(UsageError, match="empty"):
        session.prefill([])
    assert list(session.generate([5] * (POSITIONS - 1), 10)) != []  # ends with the context
    assert len(session.tokens) <= POSITIONS


def test_compiling_twice_gives_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    """Wherever it is written, by the command line or by a function."""
    model, elsewhere = open_packed(tiny.packed), tmp_path / "deep" / "er" / "app"
    elsewhere.parent.mkdir(parents=True)
    compile_model(model, elsewhere, backend.detect(), CompileSettings(), version=__version__)
    names = sorted(path.name for path in tiny.artifact.iterdir())
    assert names == sorted(path.name for path in elsewhere.iterdir())
    for path in tiny.artifact.iterdir():
        assert path.read_bytes() == (elsewhere / path.name).read_bytes(), path.name


def test_wrong_numbers_are_not_published(tiny: Tiny, tmp_path: Path) -> None:
    """Golden logits of another model: no artifact, and nothing is left."""
    packed, one = tmp_path / "packed", CompileSettings(sequences=1)
    shutil.copytree(tiny.packed, packed)
    golden = TensorFile(packed / GOLDEN)
    wrong = np.array(golden.raw("logits"))
    wrong[0, 0, 0] += 0.5
    ids = np.array(golden.raw("ids"))
    write_tensors(packed / GOLDEN, [("ids", "I32", ids), ("logits", "F32", wrong)])
    with pytest.raises(GateError, match="error in a logit"):
        compile_model(
            open_packed(packed), tmp_path / "app", backend.detect(), one, version="test"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["packed"]


HERE = [p for p in backend.presets().values() if p.machine == cpu.machine() and not p.device]
OTHERS = [preset for preset in HERE if preset.name not in kernels.PRESETS[:1]]  # that is `tiny`'s


@pytest.mark.parametrize("preset", OTHERS, ids=lambda preset: preset.name)
def test_other_presets_of_this_machine_reproduce_the_model(
    preset: Backend, tiny: Tiny, tmp_path: Path
) -> None:
    """They pass the gate where their instructions run, and stay unverified where they do not.

    For another machine, see test_toolchain.py.
    """
    model, output = open_packed(tiny.packed), tmp_path / preset.name
    report = compile_model(model, output, preset, CompileSettings(sequences=1), version="test")
    assert (report.verify is not None) == preset.runs_here()
    artifact = Artifact(output)
    assert artifact.manifest["verified"] is preset.runs_here()
    assert artifact.numbers("limits", "batches") == [1]
    names = artifact.section("functions")
    assert "decode_b1" in names and "decode_b2" not in names
    if preset.runs_here():
        assert verify_here(output).passed
