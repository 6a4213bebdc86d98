"""Contract 2, the artifact: what `compile` writes and what ships. Read and validated here.

    manifest.json            everything a host must know before it opens model.so (docs/artifact.md)
    model.so                 the compiled functions
    parameters.safetensors   every parameter as U8, padded to 64 bytes and so 64-byte aligned; the true
                             dtype and shape stand in the manifest, in the order hosts pass them
    golden.safetensors       the packed model's token ids and logits, for `verify`
    tokenizer files          verbatim, under their own names

Artifacts are code: load only what you trust. Opening checks the manifest whole, every file's size, the
hashes of small files, and every parameter's bounds; `model.so` is hashed before a host opens it, and
`check_hashes` hashes everything. Imports neither torch nor tvm.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shiftadd_tvm import cpu
from shiftadd_tvm.cuda import driver
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.files import sha256
from shiftadd_tvm.tensorfile import ALIGNMENT, TensorFile

SCHEMA = 1
ABI = 1  # of the exported functions: names, order and meaning of their arguments
MANIFEST = "manifest.json"
LIBRARY = "model.so"
PARAMETERS = "parameters.safetensors"
GOLDEN = "golden.safetensors"
KINDS = ("decoder", "encoder", "function")
# formats of look-ups
ACTIVATIONS = ("int16", "int8", "float32", "fixed16", "fixed24", "shuffle16", "bytes16")
CACHES = ("float32", "int8")  # formats of keys and values
SMALL_FILE = 64 << 20  # files up to this size are hashed at load

Array = np.ndarray
Json = dict[str, object]


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of a signature or a parameter; a size that varies is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of a tensor whose sizes are all known."""
        return math.prod(int(size) for size in self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Signature:
    """An exported function: its tensors by name, and whether the parameters come last."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: bool


class Artifact:
    """A validated artifact folder. Raises `BadFileError` or `UnsupportedError` with one sentence."""

    def __init__(self, path: str | Path) -> None:
        """Open `path` and check everything except the hashes of large files."""
        self.path = Path(path)
        self.manifest = self._read_manifest()
        self.parameters = [self._tensor(entry) for entry in self._list("parameters")]
        self._check_files()

    def _bad(self, what: str) -> BadFileError:
        return BadFileError(f"{self.path} is not a valid artifact: {what}; compile it again.")

    def _read_manifest(self) -> Json:
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise BadFileError(
                f"{self.path} holds no {MANIFEST}; expected a folder that `shiftadd-tvm compile` wrote."
            ) from None
        except NotADirectoryError:
            raise BadFileError(f"{self.path} is a file, expected an artifact folder.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise self._bad(f"{MANIFEST} cannot be read ({error})") from None
        if not isinstance(manifest, dict) or type(manifest.get("schema")) is not int:
            raise self._bad(f"{MANIFEST} states no schema version")
        if manifest["schema"] != SCHEMA:
            raise UnsupportedError(
                f"{self.path} has artifact schema {manifest['schema']}, this version reads {SCHEMA}; "
                "compile it again, or use the version of shiftadd-tvm that wrote it."
            )
        if manifest.get("abi") != ABI or manifest.get("kind") not in KINDS:
            raise self._bad(f"ABI {manifest.get('abi')!r} and kind {manifest.get('kind')!r}")
        return manifest

    def _list(self, key: str) -> list[object]:
        value = self.manifest.get(key)
        if not isinstance(value, list):
            raise self._bad(f"{key} is not a list")
        return value

    def section(self, key: str) -> Json:
        """Return the object under `key` of the manifest."""
        value = self.manifest.get(key)
        if not isinstance(value, dict):
            raise self._bad(f"{key} is not an object")
        return value

    @property
    def gpu(self) -> str:
        """The architecture of the GPU that it is compiled for, such as "sm_90"; empty: a processor."""
        device = self.section("target").get("device", "")
        return device if isinstance(device, str) else ""

    def number(self, section: str, key: str) -> int:
        """Return a non-negative whole number of the manifest."""
        value = self.section(section).get(key)
        if type(value) is not int or value < 0:
            raise self._bad(f"{section}.{key} is {value!r}, expected a whole number")
        return value

    def numbers(self, section: str, key: str) -> list[int]:
        """Return a list of whole numbers of the manifest."""
        value = self.section(section).get(key)
        if not isinstance(value, list) or not all(type(entry) is int for entry in value):
            raise self._bad(f"{section}.{key} is {value!r}, expected whole numbers")
        return value

    def activations(self) -> str:
        """Return the format in which look-ups hold activations; raises `BadFileError` for another."""
        found = self.section("activations").get("lut_query")
        if found not in ACTIVATIONS:
            expected = ", ".join(ACTIVATIONS)
            raise self._bad(f"activations.lut_query is {found!r}, expected one of {expected}")
        return str(found)

    def cache(self) -> str:
        """Return the format of keys and values; raises `BadFileError` for another."""
        inputs = self.signatures()["prefill"].inputs
        found = next((tensor.dtype for tensor in inputs if tensor.name == "keys"), None)
        if found not in CACHES:
            raise self._bad(f"the cache of prefill is {found!r}, expected {' or '.join(CACHES)}")
        return found

    def _tensor(self, entry: object) -> TensorSpec:
        fields = entry if isinstance(entry, dict) else {}
        name, dtype, shape = fields.get("name"), fields.get("dtype"), fields.get("shape")
        known = dtype in (
            "float32",
            "float16",
            "uint16",
            "uint32",
            "uint8",
            "int8",
            "int32",
            "int64",
        )
        sized = isinstance(shape, list) and all(type(s) is int and 0 <= s < 1 << 40 for s in shape)
        if not isinstance(name, str) or not known or not sized:
            raise self._bad(f"parameter {name!r} has dtype {dtype!r} and shape {shape!r}")
        return TensorSpec(name, str(dtype), tuple(shape or ()))

    def size_limits(self) -> dict[str, int]:
        """Return the most that a size may be which varies in a function's inputs, by its name."""
        return {name: self.number("limits", name) for name in self.section("limits")}

    def signatures(self) -> dict[str, Signature]:
        """Return the exported functions by name; raises `BadFileError` where one is not described."""
        return {name: self._signature(name, fields) for name, fields in self.section("functions").items()}

    def _signature(self, name: str, entry: object) -> Signature:
        fields = entry if isinstance(entry, dict) else {}
        sides: list[tuple[TensorSpec, ...]] = []
        for side in ("inputs", "outputs"):
            entries = fields.get(side)
            if not isinstance(entries, list):
                raise self._bad(f"function {name!r} states no {side}")
            sides.append(tuple(self._argument(name, e) for e in entries))
        return Signature(sides[0], sides[1], fields.get("parameters") is True)

    def _argument(self, function: str, entry: object) -> TensorSpec:
        fields = entry if isinstance(entry, dict) else {}
        name, dtype, shape = fields.get("name"), fields.get("dtype"), fields.get("shape")
        sized = isinstance(shape, list) and all(
            type(s) is str or (type(s) is int and s >= 0) for s in shape
        )
        if not isinstance(name, str) or not isinstance(dtype, str) or not sized:
            raise self._bad(f"function {function!r} has a tensor {name!r} of {dtype!r} {shape!r}")
        return TensorSpec(name, dtype, tuple(shape or ()))

    def _check_files(self) -> None:
        for name in (LIBRARY, PARAMETERS):
            if name not in self.section("files"):
                raise self._bad(f"{MANIFEST} does not list {name}")
        for name in self.section("files"):
            size, expected = self._recorded(name)
            path = self.path / name
            if Path(name).name != name or not path.is_file():
                raise self._bad(f"{name} is missing")
            if path.stat().st_size != size:
                raise self._bad(f"{name} has {path.stat().st_size} bytes, expected {size}")
            if size <= SMALL_FILE and name not in (PARAMETERS, GOLDEN):
                self._check_hash(name, expected)

    def _recorded(self, name: str) -> tuple[int, str]:
        return self._digest(name, self.section("files")[name])

    def _digest(self, name: str, record: object) -> tuple[int, str]:
        fields = record if isinstance(record, dict) else {}
        size, digest = fields.get("bytes"), fields.get("sha256")
        if type(size) is not int or not isinstance(digest, str):
            raise self._bad(f"{MANIFEST} does not state bytes and sha256 of {name}")
        return size, digest

    def _check_hash(self, name: str, expected: str) -> None:
        found = sha256(self.path / name)
        if found != expected:
            raise self._bad(f"{name} has sha256 {found[:12]}…, expected {expected[:12]}…")

    def check_hashes(self) -> int:
        """Hash every file; return how many there are, raise `BadFileError` at the first that differs."""
        names = list(self.section("files"))
        for name in names:
            self._check_hash(name, self._recorded(name)[1])
        return len(names) + self._check_bundle()

    def bundle(self) -> Json | None:
        """Return what the manifest says of a bundle, or None: its kind, what is embedded, its files."""
        return self.section("bundle") if "bundle" in self.manifest else None

    def _check_bundle(self) -> int:
        """Hash what a bundle adds for programs in C and C++, in subfolders; return how many files."""
        files = (self.bundle() or {}).get("files", {})
        if not isinstance(files, dict):
            raise self._bad("bundle.files is not an object")
        for name, record in files.items():
            parts = Path(name).parts
            if Path(name).is_absolute() or ".." in parts or len(parts) < 2:
                raise self._bad(f"bundle.files names {name}, expected a path below a subfolder")
            if not (self.path / name).is_file():
                raise self._bad(f"{name} is missing")
            self._check_hash(name, self._digest(name, record)[1])
        return len(files)

    def check_machine(self) -> None:
        """Raise `UnsupportedError` when this machine lacks what the kernels need."""
        target = self.section("target")
        needed = target.get("features")
        if target.get("machine") != cpu.machine():
            raise UnsupportedError(
                f"{self.path} is compiled for {target.get('machine')} ({target.get('preset')}), this "
                f"machine is {cpu.machine()}; compile it with a --target that runs here."
            )
        if self.gpu and (lacking := driver.lacks(self.gpu)):
            raise UnsupportedError(
                f"{self.path} is compiled for {target.get('preset')}, this machine lacks {lacking}; "
                "compile it with a --target that runs here (shiftadd-tvm targets)."
            )
        missing = sorted(set(needed if isinstance(needed, list) else []) - cpu.features())
        if missing:
            raise UnsupportedError(
                f"{self.path} needs the processor features {', '.join(map(str, missing))}, which this "
                "machine lacks; compile it with a --target that runs here (shiftadd-tvm targets)."
            )

    def load_parameters(self) -> list[Array]:
        """Return the parameters in order, mapped (copy-on-write), with their true dtype and shape."""
        mapped = TensorFile(self.path / PARAMETERS, writable_copy=True)
        return [self._parameter(mapped, spec) for spec in self.parameters]

    def _parameter(self, mapped: TensorFile, spec: TensorSpec) -> Array:
        stored = -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        if spec.name not in mapped or mapped.dtype(spec.name) != "U8":
            raise self._bad(f"{PARAMETERS} holds no U8 tensor {spec.name}")
        if mapped.shape(spec.name) != (stored,):
            found = mapped.shape(spec.name)
            raise self._bad(f"parameter {spec.name} has stored shape {found}, expected ({stored},)")
        sizes = [int(size) for size in spec.shape]
        return mapped.raw(spec.name)[: spec.nbytes].view(spec.dtype).reshape(sizes)

    def golden(self) -> tuple[Array, Array]:
        """Return the golden ids int32 (P, T) and logits float32 (P, T, vocabulary)."""
        return read_golden(self.path / GOLDEN)

    def tokenizer_file(self, name: str) -> bytes | None:
        """Return the bytes of a tokenizer file, or None where the artifact has none of that name."""
        path = self.path / name
        return path.read_bytes() if name in self.section("files") else None


def read_golden(path: Path) -> tuple[Array, Array]:
    """Return ids int32 (P, T) and logits float32 (P, T, V) of a golden file."""
    stored = TensorFile(path)
    for name, dtype in (("ids", "I32"), ("logits", "F32")):
        if name not in stored or stored.dtype(name) != dtype:
            raise BadFileError(f"{path} holds no {dtype} tensor {name!r}; expected a golden file.")
    if stored.shape("logits")[:2] != stored.shape("ids") or len(stored.shape("ids")) != 2:
        raise BadFileError(
            f"{path} has ids and logits of different shapes; expected a golden file."
        )
    return stored.raw("ids"), stored.raw("logits")


def is_artifact(path: Path) -> bool:
    """Tell whether `path` looks like an artifact folder."""
    return (path / MANIFEST).is_file()
