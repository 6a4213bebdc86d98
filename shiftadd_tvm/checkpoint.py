"""Open a source checkpoint, whatever it is: folder, `.safetensors`, `.gguf` or a hub's `org/name`.

    source                              becomes
    folder with config.json             HfCheckpoint (one file or sharded), or where its config.json
                                        says that it is of GPTQ or AWQ, IntegerCheckpoint
    file.safetensors                    HfCheckpoint; a shard opens the whole set
    file.gguf                           GgufCheckpoint
    org/name, if no such path exists    downloaded (safetensors only), then HfCheckpoint

Opening reads headers only. Nothing is ever unpickled.
"""

import re
from pathlib import Path

from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.family_checkpoint import of_family
from shiftadd_tvm.hf_checkpoint import HfCheckpoint, refuse_pickle
from shiftadd_tvm.integer_checkpoint import METHODS, IntegerCheckpoint

__all__ = ["Checkpoint", "open_checkpoint"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "tokenizer.model")


def open_checkpoint(source: str | Path, config: str | Path | None = None) -> Checkpoint:
    """Open `source` lazily; `config` names its config.json where that lies elsewhere.

    Raises `UsageError` or `BadFileError` with one sentence for anything that is not a checkpoint.
    """
    path = Path(source)
    config_path = None if config is None else Path(config)
    refuse_pickle(path)
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return _open_hf(HfCheckpoint(path, path, config_path))
    if path.is_file() and path.suffix == ".gguf":
        return _open_gguf(path, config_path)
    if path.exists():
        raise UsageError(
            f"{path} is not a checkpoint: expected a folder, a .safetensors file or a .gguf file."
        )
    if HUB_NAME.fullmatch(str(source)) and path.suffix not in (".safetensors", ".gguf"):
        return _open_hf(HfCheckpoint(path, _download(str(source)), config_path))
    raise BadFileError(
        f"{path} does not exist; expected a Hugging Face folder, a .safetensors or .gguf file, "
        "or an org/name."
    )


def _open_hf(found: HfCheckpoint) -> Checkpoint:
    """Return what reads the weights as floats, by the method in their config.json."""
    quantization = found.config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return of_family(IntegerCheckpoint(found) if method in METHODS else found)


def _open_gguf(path: Path, config: Path | None) -> Checkpoint:
    if config is not None:
        raise UsageError(f"{path} carries its own configuration; leave out --config {config}.")
    # Only here: the gguf library is an optional extra.
    from shiftadd_tvm.gguf_checkpoint import GgufCheckpoint

    return GgufCheckpoint(path)


def _download(name: str) -> Path:
    """Return the local snapshot of a hub's repository, downloading what is missing of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadFileError(
            f"{name} is no local path, and the hub did not give it ({reason[0].rstrip('.')}); "
            "check the name and the network, or name a folder."
        ) from None
