"""Present a GGUF file as a Hugging Face checkpoint, by the table of `gguf_architectures.py`.

    metadata       -> the keys of a config.json
    tensor names   -> model.layers.N.self_attn.q_proj.weight, ...
    q and k rows   llama interleaves the two halves of a head for its rotary embedding; undone here
    norms          gemma stores 1 + w; w is shown
    experts        a block has one tensor for all of them; each one's matrix is shown
    rope_freqs     -> rope_scaling of type llama3
    tokenizer      built by transformers, which knows GGUF's tokenizers

The blocks are dequantized on reading. A quantized model so opened is the reference from then on:
what it was made from is not in the file.
"""

import difflib
import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.gguf_architectures import (
    ARCHITECTURES,
    OUTER,
    WHOLE,
    WITH_EXPERTS,
    Architecture,
)
from shiftadd_tvm.gguf_file import GgufFile

# f32 (head_dim / 2): what each rotary wavelength is stretched by
ROPE_FACTORS = "rope_freqs.weight"
# Meta's constants; GGUF keeps only the factors that follow from them.
LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# What transformers writes about where and how it loaded a tokenizer.
VOLATILE_KEYS = ("is_local", "local_files_only", "name_or_path")


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: GGUF's name, and which matrix of a stack, if it is one."""

    name: str
    shape: tuple[int, ...]
    expert: int | None = None


class GgufCheckpoint(Checkpoint):
    """A GGUF file under Hugging Face names."""

    def __init__(self, path: Path) -> None:
        """Open `path`, build its configuration and check its tensor names."""
        self.path = path
        self._file = GgufFile(path)
        self._name, self._architecture = _architecture(self._file)
        self._names: dict[str, Stored] = {}  # by Hugging Face's names
        for name in self._file.names():
            if name != ROPE_FACTORS:
                self._names |= hf_names(path, name, self._file.shape(name), self._architecture)
        self.config = self._config()
        self._heads = self._permuted_heads() if self._architecture.interleaved else {}

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is there."""
        return name in self._names

    def names(self) -> list[str]:
        """Return the sorted tensor names."""
        return sorted(self._names)

    @functools.cache  # noqa: B019  building one takes long; a checkpoint lives as long as its verb
    def tokenizer_files(self) -> dict[str, bytes]:
        """Return a tokenizer built out of the file's vocabulary, if it has one."""
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        generation = {key: self.config[key] for key in keys if key in self.config}
        files = {"generation_config.json": _json_bytes(generation)} if generation else {}
        if "tokenizer.ggml.tokens" in self._file.metadata:
            files |= _build_tokenizer(self.path)
        return files

    def stored_as(self) -> str:
        """Return the format and the block types of the matrices, the one of most bytes first."""
        sizes: dict[str, int] = {}
        for name in self._names:
            if len(self._shape(name)) > 1:
                kind = self._file.type_name(self._names[name].name)
                sizes[kind] = sizes.get(kind, 0) + self.stored_bytes(name)
        return f"GGUF, {', '.join(sorted(sizes, key=lambda kind: -sizes[kind]))}"

    def stored_bytes(self, name: str) -> int:
        """Return the bytes that a tensor's blocks take."""
        stored = self._names[name]
        matrices = 1 if stored.expert is None else self._file.shape(stored.name)[0]
        return self._file.nbytes(stored.name) // matrices

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._names[name].shape

    def _dtype(self, name: str) -> str:
        stored = self._file.type_name(self._names[name].name)
        return stored if stored in ("F32", "BF16") else "F16"

    def _files(self) -> list[Path]:
        return [self.path]

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        stored = self._names[name]
        if name in self._heads:
            return self._permuted_rows(name, start, stop)
        if stored.expert is not None:
            first = stored.expert * stored.shape[0]
            return self._file.read_stacked(stored.name, first + start, first + stop)
        values = self._file.read_rows(stored.name, start, stop)
        if name.endswith("norm.weight"):
            values -= np.float32(self._architecture.norm_shift)
        return values

    def _permuted_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = gguf_rows(np.arange(start, stop), self._shape(name)[0] // self._heads[name])
        if not rows.size:
            return self._file.read_rows(self._names[name].name, 0, 0)
        first = int(rows.min())
        span = self._file.read_rows(self._names[name].name, first, int(rows.max()) + 1)
        chosen: np.ndarray = span[rows - first]
        return chosen

    def _permuted_heads(self) -> dict[str, int]:
        """Return the tensors whose rows GGUF permutes, with their number of heads."""
        heads = {}
        dim = self._int("head_dim")
        for name in self._names:
            for part, key in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                if f".self_attn.{part}." not in name:
                    continue
                heads[name] = self._int(key)
                found, expected = self._shape(name)[0], heads[name] * dim
                if found != expected or dim % 2:
                    raise BadFileError(
                        f"{self.path}: tensor {self._names[name].name} has {found} rows, expected "
                        f"{expected} = {heads[name]} heads of {dim} (an even size); get it again."
                    )
        return heads

    def _int(self, key: str) -> int:
        value = self.config[key]
        assert isinstance(value, int), (key, value)
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        """Return a positive number of the architecture's own metadata."""
        value = self._file.metadata.get(f"{self._name}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise BadFileError(
                f"{self.path}: the metadata key {self._name}.{key} is {value!r}, expected a "
                "positive number; get the file again."
            )
        return value

    def _config(self) -> dict[str, object]:
        kind = self._architecture
        if "model.embed_tokens.weight" not in self._names:
            raise BadFileError(f"{self.path} holds no token_embd.weight; get the file again.")
        whole = {key: int(self._number(name)) for key, name in {**WHOLE, **kind.whole}.items()}
        hidden, heads = whole["hidden_size"], whole["num_attention_heads"]
        head_dim = int(self._number(kind.head_dim, max(hidden // heads, 1)))
        config: dict[str, object] = {
            "architectures": [kind.model_class],
            "model_type": kind.model_type,
            **kind.constants,
            **whole,
            "num_key_value_heads": int(self._number("attention.head_count_kv", heads)),
            "head_dim": head_dim,
            "rms_norm_eps": shortest(self._number("attention.layer_norm_rms_epsilon")),
            "rope_theta": shortest(self._number("rope.freq_base", kind.rope_theta)),
            "vocab_size": self._shape("model.embed_tokens.weight")[0],
            "tie_word_embeddings": "lm_head.weight" not in self._names,
            "dtype": "float16",
        }
        for key, (name, default) in kind.optional.items():
            config[key] = shortest(self._number(name, default))
        config |= {flag: self._has_bias(flag) for flag in kind.biased}
        config |= self._layer_types(whole["num_hidden_layers"]) | kind.derive(config)
        rope = self._rope_scaling(head_dim)
        return config | ({"rope_scaling": rope} if rope else {}) | self._token_ids()

    def _has_bias(self, flag: str) -> bool:
        suffix = ".q_proj.bias" if flag == "attention_bias" else ".up_proj.bias"
        return any(name.endswith(suffix) for name in self._names)

    def _layer_types(self, layers: int) -> dict[str, object]:
        """Return which blocks attend in a window: by the file, or as the architecture has it."""
        period = self._architecture.window_period
        if not period:
            return {}
        pattern = self._file.metadata.get(f"{self._name}.attention.sliding_window_pattern", period)
        if type(pattern) is int and pattern > 0:
            pattern = [bool((index + 1) % pattern) for index in range(layers)]
        if not isinstance(pattern, list) or len(pattern) < layers:
            raise BadFileError(
                f"{self.path}: the metadata key {self._name}.attention.sliding_window_pattern is "
                f"{str(pattern)[:80]}, expected a number or a flag for each block; get it again."
            )
        kinds = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
        return {"layer_types": kinds[:layers]}

    def _token_ids(self) -> dict[str, object]:
        keys = {
            "bos_token_id": "tokenizer.ggml.bos_token_id",
            "eos_token_id": "tokenizer.ggml.eos_token_id",
            "pad_token_id": "tokenizer.ggml.padding_token_id",
        }
        metadata = self._file.metadata
        return {name: metadata[key] for name, key in keys.items() if key in metadata}

    def _rope_scaling(self, head_dim: int) -> dict[str, object] | None:
        kind = self._file.metadata.get(f"{self._name}.rope.scaling.type", "none")
        if kind == "linear":
            return {"rope_type": "linear", "factor": self._number("rope.scaling.factor")}
        if kind != "none":
            raise UnsupportedError(
                f"{self.path}: rotary scaling of type {kind!r} is not read from GGUF; supported: "
                "none, linear, llama3; give the model's safetensors instead."
            )
        if ROPE_FACTORS not in self._file:
            return None
        theta = self._number("rope.freq_base", 10000.0)
        return self._llama3_rope(self._file.read_rows(ROPE_FACTORS, 0, head_dim), theta)

    def _llama3_rope(self, found: np.ndarray, theta: float) -> dict[str, object]:
        """Return the rope_scaling from which `found`, f32 [head_dim / 2], follows."""
        factor = shortest(float(found.max(initial=1.0)))
        if not np.allclose(found, llama3_factors(theta, 2 * found.size, factor), rtol=1e-4):
            raise UnsupportedError(
                f"{self.path}: the factors in {ROPE_FACTORS} are not those of llama3 rotary "
                "scaling, the only one read from GGUF; give the model's safetensors instead."
            )
        return {"rope_type": "llama3", "factor": factor} | LLAMA3_ROPE


def _architecture(file: GgufFile) -> tuple[str, Architecture]:
    """Return a file's architecture and its name; `UnsupportedError` names the nearest one."""
    name, metadata = file.metadata.get("general.architecture"), file.metadata
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(str(name), ARCHITECTURES, 1, 0.4)
        hint = f"the nearest is {near[0]!r}; " if near else ""
        raise UnsupportedError(
            f"{file.path} has the GGUF architecture {name!r}: {hint}supported are "
            f"{', '.join(ARCHITECTURES)}; give the model's safetensors instead."
        )
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise UnsupportedError(
            f"{file.path} is one of {parts} parts of a GGUF model; join them first by llama.cpp's "
            "gguf-split --merge, or give the model's safetensors instead."
        )
    found = WITH_EXPERTS if metadata.get(f"{name}.expert_count") else ARCHITECTURES
    return str(name), found.get(str(name), ARCHITECTURES[str(name)])


def hf_names(
    path: Path, name: str, shape: tuple[int, ...], kind: Architecture
) -> dict[str, Stored]:
    """Return what a tensor holds that GGUF calls `name`, by Hugging Face's names."""
    stem, _, suffix = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if suffix in ("weight", "bias"):
        if stem in OUTER:
            return {f"{OUTER[stem]}.{suffix}": Stored(name, shape)}
        if block and block[2] in kind.inner:
            path_of = f"model.layers.{int(block[1])}.{kind.inner[block[2]]}"
            return {f"{path_of}.{suffix}": Stored(name, shape)}
        if block and block[2] in kind.stacked and len(shape) == 3:
            form = f"model.layers.{int(block[1])}.{kind.stacked[block[2]]}.{suffix}"
            return {form.format(e): Stored(name, shape[1:], e) for e in range(shape[0])}
    raise UnsupportedError(
        f"{path}: tensor {name}, of {len(shape)} axes, is not part of a {kind.model_type} model as "
        "GGUF has it (adapters and other experts are not supported); give the model's safetensors "
        "instead."
    )


def gguf_rows(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Return where GGUF keeps the given q or k rows: [head, half, i] lies at [head, i, half]."""
    head, within = np.divmod(rows, head_dim)
    half, i = np.divmod(within, head_dim // 2)
    return head * head_dim + 2 * i + half


def llama3_factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """Return what llama3 scaling stretches each wavelength by: float64 [head_dim / 2]."""
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3_ROPE["low_freq_factor"], LLAMA3_ROPE["high_freq_factor"]
    turns = LLAMA3_ROPE["original_max_position_embeddings"] / wavelength
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: np.ndarray = 1.0 / ((1.0 - smooth) / factor + smooth)
    return factors


def shortest(value: float) -> float:
    """Return the shortest decimal that rounds to the same float32: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _build_tokenizer(path: Path) -> dict[str, bytes]:
    import tempfile

    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        except (AttributeError, ImportError, LookupError, OSError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BadFileError(
                f"{path}: transformers cannot build a tokenizer out of this GGUF file "
                f"({reason[0].rstrip('.')}); give the model's safetensors folder instead."
            ) from None
        tokenizer.save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    if "tokenizer_config.json" in files:
        fields = json.loads(files["tokenizer_config.json"])
        kept = {key: value for key, value in fields.items() if key not in VOLATILE_KEYS}
        files["tokenizer_config.json"] = _json_bytes(kept)
    return files
