"""Open a Hugging Face checkpoint: config.json beside one safetensors file or a sharded set.

    config.json                     the model's configuration
    model.safetensors               all tensors; or
    model.safetensors.index.json    {"weight_map": {tensor name: shard file}} and its shards
    tokenizer.json, ...             copied verbatim, never interpreted here

Nothing is downloaded and nothing is unpickled.
"""

import json
from pathlib import Path

import numpy as np

from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.tensorfile import TensorFile

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    *("generation_config.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"),
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
CONVERSION_HINT = (
    "convert it once, where you trust it: python -c 'import transformers as t; "
    't.AutoModelForCausalLM.from_pretrained("OLD").save_pretrained("NEW")\''
)


class HfCheckpoint(Checkpoint):
    """Safetensors with Hugging Face names, in one file or several."""

    def __init__(self, path: Path, weights: Path, config: Path | None) -> None:
        """Open `weights`, a folder or one safetensors file; `path` is what the user named."""
        self.path = path
        folder = weights if weights.is_dir() else weights.parent
        config = find_config(config, folder)
        self.config = read_config(config)
        self._folders = (folder, config.parent)
        # tensor name -> the file that holds it
        self._homes = _open_tensors(weights, folder)

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is there."""
        return name in self._homes

    def names(self) -> list[str]:
        """Return the sorted tensor names."""
        return sorted(self._homes)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the tokenizer files beside the weights, or else those beside config.json."""
        found = {}
        for name in TOKENIZER_FILES:
            candidates = [folder / name for folder in self._folders if (folder / name).is_file()]
            if candidates:
                found[name] = candidates[0].read_bytes()
        return found

    def stored_as(self) -> str:
        """Return the format, and the number of its files where there are several."""
        count = len(self._files())
        return "safetensors" if count == 1 else f"safetensors, {count} shards"

    def stored_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in its file."""
        return self._homes[name].nbytes(name)

    def raw(self, name: str) -> np.ndarray:
        """Return a copy of a tensor of whole numbers, as it is stored."""
        return self._homes[name].read_raw(name)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._homes[name].shape(name)

    def _dtype(self, name: str) -> str:
        return self._homes[name].dtype(name)

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        home = self._homes[name]
        with np.errstate(over="ignore"):  # an F64 beyond float32 becomes Inf, which is reported
            return home.read_rows(name, start, stop) if home.shape(name) else home.read(name)

    def _files(self) -> list[Path]:
        return sorted({home.path for home in self._homes.values()})


def find_config(config: Path | None, folder: Path) -> Path:
    """Return the config.json to read: the one the user gave (file or folder), or the folder's."""
    if config is not None:
        return config / "config.json" if config.is_dir() else config
    return folder / "config.json"


def read_config(path: Path) -> dict[str, object]:
    """Return config.json as a dictionary; what it says is judged by the model's family."""
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadFileError(
            f"{path} does not exist; put the model's config.json there, or name it by --config."
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is not JSON ({error}); get it again.") from None
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    if not isinstance(config, dict):
        raise BadFileError(
            f"{path} holds a JSON {type(config).__name__}, expected an object; "
            "get the model's own config.json."
        )
    return config


def refuse_pickle(path: Path) -> None:
    """Raise `BadFileError` for a pickled checkpoint."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise BadFileError(
            f"{path} is a pickle, which runs code when it is read; expected .safetensors or .gguf; "
            f"{CONVERSION_HINT}."
        )


def _open_tensors(weights: Path, folder: Path) -> dict[str, TensorFile]:
    index = folder / INDEX_NAME
    if weights.is_dir():
        if (folder / SINGLE_NAME).is_file():
            return _open_single(folder / SINGLE_NAME)
        if index.is_file():
            return _open_shards(index, _weight_map(index))
        return _open_single(_only_file(folder))
    if index.is_file():
        weight_map = _weight_map(index)
        if weights.name in weight_map.values():  # a shard stands for the set it belongs to
            return _open_shards(index, weight_map)
    if "-of-" in weights.stem:
        raise BadFileError(
            f"{weights} is one shard of several, but {index} does not list it; "
            "put the index and all shards in one folder."
        )
    return _open_single(weights)


def _only_file(folder: Path) -> Path:
    """Return the folder's one safetensors file, whatever its name."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and "-of-" not in files[0].stem:
        return files[0]
    if files:
        raise BadFileError(
            f"{folder} holds {len(files)} .safetensors files but neither {SINGLE_NAME} nor "
            f"{INDEX_NAME}; add the index, or name one file."
        )
    for path in sorted(folder.iterdir()):
        refuse_pickle(path)
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        raise UsageError(f"{folder} holds no .safetensors; name the GGUF: {folder / ggufs[0]}.")
    raise BadFileError(
        f"{folder} holds no weights: expected {SINGLE_NAME} or {INDEX_NAME} and its shards."
    )


def _open_single(path: Path) -> dict[str, TensorFile]:
    home = TensorFile(path)
    return {name: home for name in home.names()}


def _weight_map(index: Path) -> dict[str, str]:
    """Return tensor name -> shard file name of an index file."""
    try:
        fields = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadFileError(f"{index} cannot be read as JSON ({error}); get it again.") from None
    weight_map = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadFileError(f'{index} has no "weight_map" of tensor names to files; get it again.')
    for name, shard in weight_map.items():
        # Only a bare file name: an index must not lead out of its folder.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise BadFileError(
                f"{index} puts tensor {name} in {shard!r}, expected the name of a file beside it."
            )
    return weight_map


def _open_shards(index: Path, weight_map: dict[str, str]) -> dict[str, TensorFile]:
    homes = {}
    for shard in sorted(set(weight_map.values())):
        path = index.parent / shard
        if not path.is_file():
            raise BadFileError(f"{path} is missing, though {index.name} lists it; get it again.")
        homes[shard] = TensorFile(path)
    for name, shard in weight_map.items():
        if name not in homes[shard]:
            raise BadFileError(
                f"{index} says that tensor {name} is in {shard}, but it is not; "
                "index and shards are of different checkpoints: get them again."
            )
    return {name: homes[shard] for name, shard in weight_map.items()}
