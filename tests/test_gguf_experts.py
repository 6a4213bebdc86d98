"""Mixtral in GGUF: llama's architecture with a block's experts in one tensor, written and read back."""

from pathlib import Path

import numpy as np
import pytest
from models import tiny_tensors

from shiftadd_tvm import families, quantize_plan
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.families import mixtral
from shiftadd_tvm.gguf_checkpoint import gguf_rows
from shiftadd_tvm.settings import QuantizeSettings

gguf = pytest.importorskip("gguf")

CONFIG = {**mixtral.tiny_config(), "sliding_window": None, "rope_theta": 1e6}  # GGUF has no window
STACKS = {"w1": "FFN_GATE_EXP", "w2": "FFN_DOWN_EXP", "w3": "FFN_UP_EXP"}
Tensors = dict[str, np.ndarray]


def number(key: str) -> int:
    return int(str(CONFIG[key]))


def stored(tensors: Tensors) -> Tensors:
    """Return tensors as GGUF stores them, by the names that its library has for llama."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, number("num_hidden_layers"))
    found, stacks = {}, {}
    for name, values in tensors.items():
        if ".experts." in name:
            block, part = name.split(".")[2], name.split(".")[-2]
            form = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[STACKS[part]]]
            stacks.setdefault(f"{form.format(bid=block)}.weight", []).append(values)
            continue
        for part, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if f".{part}." in name:
                turned = np.empty_like(values)
                rows = np.arange(len(values))
                turned[gguf_rows(rows, len(values) // number(key))] = values
                values = turned
        found[names.get_name(name, try_suffixes=(".weight",))] = values
    return found | {name: np.stack(matrices) for name, matrices in stacks.items()}


def write(path: Path, tensors: Tensors) -> None:
    """Write a GGUF file whose experts are Q8_0, all else float32."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(number("num_hidden_layers"))
    writer.add_context_length(number("max_position_embeddings"))
    writer.add_embedding_length(number("hidden_size"))
    writer.add_feed_forward_length(number("intermediate_size"))
    writer.add_head_count(number("num_attention_heads"))
    writer.add_head_count_kv(number("num_key_value_heads"))
    writer.add_rope_dimension_count(number("head_dim"))
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_expert_count(number("num_local_experts"))
    writer.add_expert_used_count(number("num_experts_per_tok"))
    for name, values in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 3 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_mixtral_reads_as_its_checkpoint(tmp_path: Path) -> None:
    tensors = tiny_tensors(CONFIG)
    write(tmp_path / "tiny.gguf", stored(tensors))
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert families.read_config(checkpoint.config) == families.read_config(CONFIG)
    assert checkpoint.names() == sorted(tensors)
    for name, expected in tensors.items():
        if ".experts." in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            expected = gguf.dequantize(gguf.quantize(expected, kind), kind)
        assert checkpoint.shape(name) == expected.shape
        np.testing.assert_array_equal(checkpoint.read(name), expected, err_msg=name)
        rows = checkpoint.read_rows(name, 1, 4)
        np.testing.assert_array_equal(rows, expected[1:4], err_msg=name)
    layout = quantize_plan.make_layout(checkpoint, QuantizeSettings(bits=3))
    assert len(layout.linears()) == 2 * (4 + 3 * number("num_local_experts"))
    whole = sum(checkpoint.stored_bytes(name) for name in checkpoint.names())
    assert whole <= (tmp_path / "tiny.gguf").stat().st_size < 1.1 * whole


def test_experts_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    tensors = stored(tiny_tensors(CONFIG))
    shared = np.ones((number("intermediate_size"), number("hidden_size")), np.float32)
    write(tmp_path / "tiny.gguf", {**tensors, "blk.0.ffn_gate_shexp.weight": shared})
    with pytest.raises(UnsupportedError, match=r"ffn_gate_shexp\.weight.*of a mixtral model"):
        open_checkpoint(tmp_path / "tiny.gguf")
