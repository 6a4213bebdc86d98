"""A GGUF file of a LLaMA shape with random weights of one type, for the llama.cpp peer."""

from pathlib import Path

import gguf
import numpy as np

from shiftadd_tvm.baselines.ggml import TYPES, Ggml
from shiftadd_tvm.benchmark.turns import Fields

# For rows that a type's blocks do not divide, as llama.cpp's own quantizer does it: to the next type
# of at least that size in blocks of 32, and at last to none.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q4_0", "Q6_K": "Q8_0"}
UNPACKED = "F32"
HEAD = "Q6_K"  # llama.cpp's own choice for the head beside types of 2 to 4 bits

Array = np.ndarray
Tensors = dict[str, tuple[str, int, int]]  # name -> type, rows, inputs


def tensors(ggml: Ggml, shape: Fields, kind: str) -> Tensors:
    """Return the matrices of the model; rows that a type's blocks do not divide fall back."""
    hidden, inner = shape["hidden"], shape["intermediate"]
    attention, keys = (shape[name] * shape["head_dim"] for name in ("heads", "kv_heads"))
    sizes = {
        "attn_q": (attention, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, attention),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }

    def fitting(name: str, inputs: int) -> str:
        while inputs % ggml.blck_size(TYPES[name]):
            name = FALLBACK.get(name, UNPACKED)
        return name

    tied = shape["tied_embeddings"]
    wanted = HEAD if tied else kind
    found = {"token_embd.weight": (fitting(wanted, hidden), shape["vocabulary"], hidden)}
    if not tied:
        found["output.weight"] = (fitting(HEAD, hidden), shape["vocabulary"], hidden)
    for layer in range(shape["layers"]):
        for name, (rows, inputs) in sizes.items():
            found[f"blk.{layer}.{name}.weight"] = (fitting(kind, inputs), rows, inputs)
    return found


def norms(shape: Fields) -> list[str]:
    """Return the names of the norms' weights."""
    each = [f"blk.{layer}.{name}.weight" for layer in range(shape["layers"]) for name in NORMS]
    return [*each, "output_norm.weight"]


NORMS = ("attn_norm", "ffn_norm")


def bytes_read(ggml: Ggml, found: Tensors) -> int:
    """Return the bytes of the matrices that a decode step reads whole."""
    looked_up = "token_embd.weight" if "output.weight" in found else ""
    return sum(
        rows * int(ggml.row_size(TYPES[kind], inputs))
        for name, (kind, rows, inputs) in found.items()
        if name != looked_up
    )


def write(path: Path, ggml: Ggml, shape: Fields, found: Tensors) -> None:
    """Write the file, one tensor in memory at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(shape["vocabulary"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["intermediate"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_layer_norm_rms_eps(1e-5)
    ones = np.ones(shape["hidden"], np.float32)
    for name in norms(shape):
        writer.add_tensor_info(name, ones.shape, ones.dtype, ones.nbytes)
    for name, (kind, rows, inputs) in found.items():
        stored = (rows, int(ggml.row_size(TYPES[kind], inputs)))
        quantized = gguf.GGMLQuantizationType(TYPES[kind])
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), stored[0] * stored[1], quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in norms(shape):
        writer.write_tensor_data(ones)
    for kind, rows, inputs in found.values():
        writer.write_tensor_data(ggml.random_rows(kind, rows, inputs))
    writer.close()
