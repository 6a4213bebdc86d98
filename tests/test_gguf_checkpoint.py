"""GGUF checkpoints: Hugging Face's names, orientation and config; damage makes one sentence."""

import builtins
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.errors import BadFileError, ShiftAddError, UnsupportedError, UsageError
from shiftadd_tvm.gguf_checkpoint import llama3_factors, shortest

gguf = pytest.importorskip("gguf")

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 64, 4, 2, 32, 96, 40
SHAPES = {  # GGUF name -> shape in NumPy's order
    "token_embd.weight": (VOCAB, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.ffn_gate.weight": (INNER, HIDDEN),
    "blk.0.ffn_up.weight": (INNER, HIDDEN),
    "blk.0.ffn_down.weight": (HIDDEN, INNER),
}
KINDS = ("F32", "F16", "Q4_0", "Q8_0", "BF16", "Q4_1")
Change = Callable[["gguf.GGUFWriter", dict[str, np.ndarray]], None]


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def no_change(writer: "gguf.GGUFWriter", tensors: dict[str, np.ndarray]) -> None:
    """Leave the file as it is."""


def write_gguf(
    path: Path, change: Change = no_change, arch: str = "llama"
) -> dict[str, np.ndarray]:
    """Write a tiny model whose matrices take turns in KINDS; return the dequantized values."""
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tensors = values()
    change(writer, tensors)
    stored = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        kind = gguf.GGMLQuantizationType[KINDS[number % len(KINDS)] if tensor.ndim > 1 else "F32"]
        blocks = gguf.quantize(tensor, kind)
        stored[name] = np.asarray(gguf.dequantize(blocks, kind), np.float32).reshape(tensor.shape)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return q or k rows in Hugging Face's order, by the transcription of shared/notes/data.md."""
    return rows.reshape(heads, HEAD_DIM // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def test_tensors(tmp_path: Path) -> None:
    stored = write_gguf(tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    block = "model.layers.0"
    expected = {
        "model.embed_tokens.weight": stored["token_embd.weight"],
        "model.norm.weight": stored["output_norm.weight"],
        f"{block}.input_layernorm.weight": stored["blk.0.attn_norm.weight"],
        f"{block}.post_attention_layernorm.weight": stored["blk.0.ffn_norm.weight"],
        f"{block}.self_attn.q_proj.weight": unpermuted(stored["blk.0.attn_q.weight"], HEADS),
        f"{block}.self_attn.k_proj.weight": unpermuted(stored["blk.0.attn_k.weight"], KV_HEADS),
        f"{block}.self_attn.v_proj.weight": stored["blk.0.attn_v.weight"],
        f"{block}.self_attn.o_proj.weight": stored["blk.0.attn_output.weight"],
        f"{block}.mlp.gate_proj.weight": stored["blk.0.ffn_gate.weight"],
        f"{block}.mlp.up_proj.weight": stored["blk.0.ffn_up.weight"],
        f"{block}.mlp.down_proj.weight": stored["blk.0.ffn_down.weight"],
    }
    assert checkpoint.names() == sorted(expected)
    for name, tensor in expected.items():
        found = checkpoint.read(name)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, tensor, err_msg=name)
        assert checkpoint.shape(name) == tensor.shape
        for start, stop in ((0, 0), (0, 1), (3, 37), (len(tensor) - 1, len(tensor))):
            rows = checkpoint.read_rows(name, start, stop)
            np.testing.assert_array_equal(rows, tensor[start:stop])
    assert checkpoint.dtype("model.norm.weight") == "F32"
    assert checkpoint.dtype(f"{block}.mlp.down_proj.weight") == "BF16"


def test_config(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCAB,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert sorted(checkpoint.tokenizer_files()) == ["generation_config.json"]


def test_untied_head_and_biases(tmp_path: Path) -> None:
    def change(writer: "gguf.GGUFWriter", tensors: dict[str, np.ndarray]) -> None:
        tensors["output.weight"] = np.ones((VOCAB, HIDDEN), np.float32)
        tensors["blk.0.attn_q.bias"] = np.arange(HEADS * HEAD_DIM, dtype=np.float32)

    stored = write_gguf(tmp_path / "tiny.gguf", change)
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.config["tie_word_embeddings"] is False
    assert checkpoint.config["attention_bias"] is True
    bias = checkpoint.read("model.layers.0.self_attn.q_proj.bias")
    np.testing.assert_array_equal(bias, unpermuted(stored["blk.0.attn_q.bias"], HEADS))


def test_llama3_rope_is_recovered_from_its_factors(tmp_path: Path) -> None:
    def change(writer: "gguf.GGUFWriter", tensors: dict[str, np.ndarray]) -> None:
        writer.add_rope_freq_base(500000.0)
        tensors["rope_freqs.weight"] = llama3_factors(500000.0, HEAD_DIM, 8.0).astype(np.float32)

    write_gguf(tmp_path / "tiny.gguf", change)
    assert open_checkpoint(tmp_path / "tiny.gguf").config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_llama3_factors_agree_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=1, head_dim=128, rope_parameters=rope
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    plain = 5e5 ** -(np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(
        plain / rotary.inv_freq.numpy(), llama3_factors(5e5, 128, 32.0), rtol=1e-5
    )


def test_unknown_rope_factors_are_refused(tmp_path: Path) -> None:
    def change(writer: "gguf.GGUFWriter", tensors: dict[str, np.ndarray]) -> None:
        tensors["rope_freqs.weight"] = np.linspace(1, 9, HEAD_DIM // 2, dtype=np.float32)

    write_gguf(tmp_path / "tiny.gguf", change)
    with pytest.raises(UnsupportedError, match="rope_freqs"):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_other_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", arch="gemma4")
    with pytest.raises(UnsupportedError, match="'gemma4': the nearest is 'gemma'; supported are"):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_experts_are_refused(tmp_path: Path) -> None:
    def change(writer: "gguf.GGUFWriter", tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.ffn_gate_inp.weight"] = np.ones((8, HIDDEN), np.float32)

    write_gguf(tmp_path / "tiny.gguf", change)
    with pytest.raises(UnsupportedError, match="ffn_gate_inp"):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_wrong_number_of_heads(tmp_path: Path) -> None:
    def change(writer: "gguf.GGUFWriter", tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.attn_k.weight"] = np.ones((96, HIDDEN), np.float32)

    write_gguf(tmp_path / "tiny.gguf", change)
    with pytest.raises(BadFileError, match="has 96 rows, expected 64 = 2 heads of 32"):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_nan_is_named(tmp_path: Path) -> None:
    def change(writer: "gguf.GGUFWriter", tensors: dict[str, np.ndarray]) -> None:
        tensors["output_norm.weight"][3] = np.nan

    write_gguf(tmp_path / "tiny.gguf", change)
    with pytest.raises(BadFileError, match="tensor model.norm.weight holds 1 NaN"):
        open_checkpoint(tmp_path / "tiny.gguf").read("model.norm.weight")


def test_config_beside_a_gguf_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(UsageError, match="carries its own configuration"):
        open_checkpoint(tmp_path / "tiny.gguf", tmp_path / "config.json")


def test_missing_library_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    real = builtins.__import__

    def without_gguf(name: str, *rest: object) -> object:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(UsageError, match=r"pip install 'shiftadd-tvm\[gguf\]'"):
        open_checkpoint(tmp_path / "tiny.gguf")


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name in checkpoint.names():
        checkpoint.read(name)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    # The last bytes may be padding, which nothing needs.
    for size in (0, 3, 4, 20, 100, 1000, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:size])
        with pytest.raises(BadFileError, match=r"tiny\.gguf") as caught:
            read_all(path)
        assert "\n" not in str(caught.value)


def test_array_that_claims_to_be_endless(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    header = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little")
    key = (1).to_bytes(8, "little") + b"k"
    for element in (0, 4, 8, 9, 77):
        claim = (9).to_bytes(4, "little") + element.to_bytes(4, "little") + b"\xff" * 8
        path.write_bytes(header + (1).to_bytes(8, "little") + key + claim)
        with pytest.raises(BadFileError, match="not a valid GGUF"):
            open_checkpoint(path)


def test_single_bit_flips_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for position in rng.integers(0, 1500, 200):  # the header
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(flipped)
        try:
            read_all(path)
        except ShiftAddError:
            continue


@pytest.mark.parametrize("value", [1e-5, 1e-6, 10000.0, 500000.0, 8.0])
def test_shortest_decimal(value: float) -> None:
    assert shortest(float(np.float32(value))) == value
