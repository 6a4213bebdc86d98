"""The `quantization_config` of a packed model: written from a `Layout`, read back and checked.

quant_method            "shiftadd_bcq"
version                 1; a reader refuses newer ones
kind                    "hf", or "onnx" (onnx_packed.py)
bits                    average over the weights, a whole number if it is one
bits_per_module         {linear: 1..4} for every quantized linear
scales                  {"format": "separable"}, or {"format": "row-group" | "column-wise" |
                        "block-wise", "rows": R, "columns": C}, 0 = all of them
terms                   {"row_terms", "column_terms", "plane_terms"} or {"block_terms"}: how
                        many powers of two a scale is the sum of
rotation                null, or {"kind": "hadamard", "max_block", "seed"}; a linear with K
                        inputs uses bcq.rotation_block(K, max_block), and 1 means none
shared_input_groups     groups of two or more linears; the first stores what they share
calibration             null, or how the data were chosen
method                  {"name", ...}: what made the weights
embedding_bits          16 (the checkpoint's precision) or 8
modules_to_not_convert  as Hugging Face has it
source                  the checkpoint's `source_hash`, by which `compile` knows it again (optional)
"""

import json
from pathlib import Path
from typing import TypedDict

from shiftadd_tvm import families
from shiftadd_tvm.bcq import MAX_BITS, MAX_TERMS
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.families import Config, Decoder
from shiftadd_tvm.packed_layout import CodedLayout, Layout
from shiftadd_tvm.settings import DEFAULT_BLOCKS, QuantizeSettings

OWN_TEXT = "written by the model"  # what `calibration` says of data that nobody gave
QUANT_METHOD = "shiftadd_bcq"
VERSION = 1
KIND = "hf"
ROTATIONS = (4, 16, 64, 256, 1024, 4096)  # possible max_block


class Coding(TypedDict):
    """The fields of a `CodedLayout`."""

    bits: dict[str, int]
    scale_format: str
    rows: int
    columns: int
    terms: dict[str, int]
    max_rotation: int


def read_json(path: Path) -> dict[str, object]:
    """Return the JSON object in `path`; raise `BadFileError` for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is not JSON ({error}); get it again.") from None
    if not isinstance(value, dict):
        raise BadFileError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def make_layout(decoder: Decoder, settings: QuantizeSettings) -> Layout:
    """Return the layout of `decoder` quantized as `settings` ask."""
    linears = [f"{b}.{name}" for b in decoder.blocks() for name in decoder.linear_shapes()]
    return Layout(
        **make_coding(settings, linears), decoder=decoder, embedding_bits=settings.embedding_bits
    )


def make_coding(settings: QuantizeSettings, linears: list[str]) -> Coding:
    """Return how `settings` code the `linears`."""
    rows, columns = settings.block
    return {
        "bits": {linear: settings.bits_of(linear) for linear in linears},
        "scale_format": settings.scale_format,
        "rows": rows,
        "columns": columns,
        "terms": settings.terms,
        "max_rotation": settings.max_rotation,
    }


def write_config(
    layout: Layout, settings: QuantizeSettings, calibration: dict[str, object] | None = None
) -> dict[str, object]:
    """Return the quantization_config of what `settings` made from the `calibration` data."""
    return {
        **coding_config(layout, settings),
        "kind": KIND,
        "shared_input_groups": shared_groups(layout),
        "calibration": calibration,
        "embedding_bits": layout.embedding_bits,
        "modules_to_not_convert": [layout.decoder.head],
    }


def coding_config(layout: CodedLayout, settings: QuantizeSettings) -> dict[str, object]:
    """Return the part of a quantization_config that says how linears of any model are coded."""
    made_by: dict[str, object] = {"name": settings.method, "rounds": settings.rounds}
    if settings.calibrated:
        made_by = {
            "name": settings.method,
            "effort": settings.effort,
            "bits": settings.bits,
            "mixed": settings.mixed,
            "criterion": settings.criterion,
            **({} if settings.latency is None else {"latency_us": settings.latency}),
        }
    scales: dict[str, object] = {"format": layout.scale_format}
    if layout.scale_format != "separable":
        scales |= {"rows": layout.rows, "columns": layout.columns}
    rotation = {"kind": "hadamard", "max_block": settings.max_rotation, "seed": settings.seed}
    return {
        "quant_method": QUANT_METHOD,
        "version": VERSION,
        "bits": layout.nominal_bits(),
        "bits_per_module": layout.bits,
        "scales": scales,
        "terms": layout.terms,
        "rotation": rotation if settings.max_rotation else None,
        "method": made_by,
    }


def shared_groups(layout: CodedLayout) -> list[list[str]]:
    """Return the groups of two or more linears, as JSON has them."""
    return [list(group) for group in layout.groups() if len(group) > 1]


def made_by(found: dict[str, object], checkpoint: Checkpoint, settings: QuantizeSettings) -> bool:
    """Tell whether a quantization_config is what `settings` make of `checkpoint`.

    What a calibrated run finds out by itself is not compared: bits and the text that the model wrote.
    """
    decoder = families.read_config(checkpoint.config)
    expected = write_config(make_layout(decoder, settings), settings)
    expected["source"] = checkpoint.source_hash()
    calibration = found.get("calibration")
    if settings.calibrated and isinstance(calibration, dict):
        written = calibration.get("data") == OWN_TEXT and calibration.get("seed") == settings.seed
        found_out = ("bits", "bits_per_module", "calibration") if written else ()
        expected |= {key: found.get(key) for key in found_out}
    return bool(found == json.loads(json.dumps(expected)))


def read_config(path: Path, config: Config) -> tuple[Config, Decoder, Layout]:
    """Return quantization_config, decoder and layout of the config.json `config` at `path`."""
    fields = read_fields(path, config, KIND)
    decoder = families.read_config(config, path)
    layout = _read_layout(fields, decoder)
    groups = fields.get("shared_input_groups")
    fields.require("shared_input_groups", groups == shared_groups(layout), "the family's own")
    fields.require("bits", fields.get("bits") == layout.nominal_bits(), "bits_per_module's average")
    return fields.values, decoder, layout


def read_fields(path: Path, config: Config, kind: str) -> "Fields":
    """Return the quantization_config of the config.json at `path`, of our method, a version that we
    read, and `kind`."""
    quantization = config.get("quantization_config")
    fields = Fields(path, quantization if isinstance(quantization, dict) else {})
    fields.require("quant_method", fields.get("quant_method") == QUANT_METHOD, repr(QUANT_METHOD))
    version = fields.get("version")
    if type(version) is int and version > VERSION:
        raise UnsupportedError(
            f"{path} describes a packed model of version {version}, this shiftadd-tvm reads up to "
            f"version {VERSION}; update shiftadd-tvm."
        )
    fields.require("version", version == VERSION and type(version) is int, str(VERSION))
    fields.require("kind", fields.get("kind") == kind, repr(kind))
    return fields


class Fields:
    """A quantization_config that names the key at fault."""

    def __init__(self, path: Path, values: Config) -> None:
        self.path, self.values = path, values

    def get(self, key: str) -> object:
        """Return a value, None where there is none."""
        return self.values.get(key)

    def object(self, key: str) -> Config:
        """Return an object; `BadFileError` for anything else."""
        value = self.get(key)
        self.require(key, isinstance(value, dict), "an object")
        assert isinstance(value, dict)
        return value

    def require(self, key: str, true: bool, expected: str) -> None:
        """Raise `BadFileError` that names `key` unless `true`."""
        if not true:
            found = repr(self.get(key))
            raise BadFileError(
                f"{self.path}: quantization_config has {key} = {found[:80]}, expected {expected}; "
                "quantize the checkpoint again."
            )


def _read_layout(fields: Fields, decoder: Decoder) -> Layout:
    """Return the layout that a quantization_config describes."""
    embedding_bits = fields.get("embedding_bits")
    fields.require("embedding_bits", embedding_bits in (8, 16), "8 or 16")
    linears = [f"{b}.{name}" for b in decoder.blocks() for name in decoder.linear_shapes()]
    return Layout(
        **read_coding(fields, linears, "the family's linears"),
        decoder=decoder,
        embedding_bits=8 if embedding_bits == 8 else 16,
    )


def read_coding(fields: Fields, linears: list[str], whose: str) -> Coding:
    """Return how the `linears` are coded; errors name them as `whose`."""
    scale_format, rows, columns = _read_scales(fields)
    return {
        "bits": _read_bits(fields, linears, whose),
        "scale_format": scale_format,
        "rows": rows,
        "columns": columns,
        "terms": _read_terms(fields, scale_format),
        "max_rotation": 0 if fields.get("rotation") is None else _read_rotation(fields),
    }


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _read_bits(fields: Fields, expected: list[str], whose: str) -> dict[str, int]:
    bits = fields.object("bits_per_module")
    fields.require("bits_per_module", sorted(bits) == sorted(expected), whose)
    whole = all(_is_int(value, 1, MAX_BITS) for value in bits.values())
    fields.require("bits_per_module", whole, f"whole numbers 1-{MAX_BITS}")
    return {linear: int(str(bits[linear])) for linear in expected}


def _read_scales(fields: Fields) -> tuple[str, int, int]:
    scales = fields.object("scales")
    scale_format = scales.get("format")
    fields.require("scales", scale_format in list(DEFAULT_BLOCKS), f"one of {list(DEFAULT_BLOCKS)}")
    if scale_format == "separable":
        fields.require("scales", len(scales) == 1, "no block for separable scales")
        return "separable", 0, 0
    rows, columns = scales.get("rows"), scales.get("columns")
    sizes = _is_int(rows, 0, 1 << 31) and _is_int(columns, 0, 1 << 31)
    fields.require("scales", sizes, "rows and columns of 0 or more")
    rows, columns = int(str(rows)), int(str(columns))
    fields.require("scales", columns == 1 or columns % 4 == 0, "columns of 1 or 4 j")
    return str(scale_format), rows, columns


def _read_terms(fields: Fields, scale_format: str) -> dict[str, int]:
    terms = fields.object("terms")
    names = [name for name in MAX_TERMS if (name == "block_terms") != (scale_format == "separable")]
    good = sorted(terms) == sorted(names) and all(_is_int(terms[n], 1, MAX_TERMS[n]) for n in names)
    fields.require("terms", good, f"1 to {MAX_TERMS} for {', '.join(names)}")
    return {name: int(str(terms[name])) for name in names}


def _read_rotation(fields: Fields) -> int:
    rotation = fields.object("rotation")
    block = rotation.get("max_block")
    good = rotation.get("kind") == "hadamard" and type(block) is int and block in ROTATIONS
    fields.require("rotation", good, f"hadamard with max_block one of {ROTATIONS}")
    return int(str(block))
