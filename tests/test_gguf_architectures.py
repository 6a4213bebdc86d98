"""GGUF architectures and block types: written by the names of the gguf library, read back.

The writer here follows the conversion that made such files: names by gguf's own map, llama's q and k
rows interleaved, gemma's norms stored as 1 + w.
"""

from pathlib import Path

import numpy as np
import pytest

from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.gguf_architectures import ARCHITECTURES
from shiftadd_tvm.gguf_file import GgufFile

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
# model type -> what its GGUF stores beside the sizes, under Hugging Face's names
OWN = {
    "llama": {"rope_theta": 5e5},
    "qwen2": {"rope_theta": 1e6, "head_dim": 16},
    "qwen3": {"rope_theta": 1e6},
    "gemma": {},
    "gemma2": {"sliding_window": 24, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 24, "rope_theta": 1e6, "query_pre_attn_scalar": 32},
}
COMPARED = (*SIZES, "rope_parameters", "hidden_act", "hidden_activation", "attention_bias")
COMPARED += ("tie_word_embeddings", "sliding_window", "layer_types", "query_pre_attn_scalar")
COMPARED += ("attn_logit_softcapping", "final_logit_softcapping", "bos_token_id", "eos_token_id")


def dequantized() -> "list[gguf.GGMLQuantizationType]":
    """Return the block types that the library dequantizes, by its own table and the float types."""
    floats = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16")]
    return floats + [kind for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits]


def made(architecture: str) -> "transformers.PreTrainedModel":
    """Return a small random model of an architecture."""
    model_type = ARCHITECTURES[architecture].model_type
    tied = {"tie_word_embeddings": model_type.startswith("gemma")}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    fields = SIZES | OWN[model_type] | tied | ids
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(model_type, **fields)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data)  # norms and biases too
    return model


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return q or k rows as llama's GGUF stores them: the two halves of a head take turns."""
    size = len(rows) // heads
    order = [h * size + half * size // 2 + i
             for h in range(heads) for i in range(size // 2) for half in (0, 1)]  # fmt: skip
    return rows[order]


def write(model: "transformers.PreTrainedModel", architecture: str, path: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    if "rope_theta" in OWN[config.model_type]:
        writer.add_rope_freq_base(OWN[config.model_type]["rope_theta"])
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    elif architecture != "qwen2":
        writer.add_key_length(config.head_dim)
    if "sliding_window" in OWN[config.model_type]:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if architecture == "llama" and ".q_proj." in name:
            values = interleaved(values, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            values = interleaved(values, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(stored, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architecture_reads_as_transformers_model(architecture: str, tmp_path: Path) -> None:
    model = made(architecture)
    path = tmp_path / "tiny.gguf"
    write(model, architecture, path)
    checkpoint = open_checkpoint(path)
    fields = {k: v for k, v in checkpoint.config.items() if k not in ("model_type", "dtype")}
    found = transformers.AutoConfig.for_model(checkpoint.config["model_type"], **fields)
    assert type(found) is type(model.config)
    for key in COMPARED:
        assert getattr(found, key, None) == getattr(model.config, key, None), key
    expected = dict(model.named_parameters())  # a tied head once
    assert checkpoint.names() == sorted(expected)
    for name, parameter in expected.items():
        # 1 + w was rounded when it was stored
        tolerance = 5e-7 if name.endswith("norm.weight") else 0
        values = parameter.detach().numpy()
        np.testing.assert_allclose(checkpoint.read(name), values, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(
            checkpoint.read_rows(name, 3, 20), checkpoint.read(name)[3:20], err_msg=name
        )


@pytest.mark.parametrize(("layers", "expected"), [(46, 16), (7, 32)])
def test_scalar_of_the_largest_gemma_2(layers: int, expected: int) -> None:
    sizes = {**SIZES, "num_hidden_layers": layers}
    assert ARCHITECTURES["gemma2"].derive(sizes) == {"query_pre_attn_scalar": expected}


@pytest.mark.parametrize("pattern", [3, [True, True, False, True, True, False, True]])
def test_window_pattern_of_the_file(pattern: object, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    rewrite(path, lambda writer: writer.add_sliding_window_pattern(pattern))
    kinds = open_checkpoint(path).config["layer_types"]
    assert isinstance(kinds, list)
    full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
    assert (len(kinds), full) == (7, [2, 5])


def test_window_pattern_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    rewrite(path, lambda writer: writer.add_sliding_window_pattern([True]))
    with pytest.raises(BadFileError, match=r"sliding_window_pattern is \[True\]"):
        open_checkpoint(path)


def test_part_of_a_split_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    rewrite(path, lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(UnsupportedError, match="one of 3 parts.*gguf-split --merge"):
        open_checkpoint(path)


def test_yarn_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    rewrite(path, lambda writer: writer.add_string("gemma3.rope.scaling.type", "yarn"))
    with pytest.raises(UnsupportedError, match="'yarn'"):
        open_checkpoint(path)


def rewrite(path: Path, change: object) -> None:
    """Write a gemma3 file with more metadata."""
    made_with = gguf.GGUFWriter.write_header_to_file

    def add(self: "gguf.GGUFWriter") -> None:
        change(self)  # type: ignore[operator]
        made_with(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", add)
        write(made("gemma3"), "gemma3", path)


@pytest.mark.parametrize("kind", dequantized(), ids=lambda kind: kind.name)
def test_block_type(kind: "gguf.GGMLQuantizationType", tmp_path: Path) -> None:
    """Rows of every type that the library dequantizes, out of random blocks."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (6, 2 * size), np.uint8)
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("w", blocks, raw_shape=blocks.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert (file.shape("w"), file.type_name("w")) == ((6, 2 * block), kind.name)
    with np.errstate(all="ignore"):
        expected = np.asarray(gguf.dequantize(blocks, kind), np.float32).reshape(6, -1)
    np.testing.assert_array_equal(file.read_rows("w", 0, 6), expected)
    np.testing.assert_array_equal(file.read_rows("w", 2, 5), expected[2:5])
