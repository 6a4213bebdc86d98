"""Make an artifact ready to be embedded: a bundle beside it, or one library in place of model.so."""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shiftadd_tvm import artifact, sdk, static_runtime
from shiftadd_tvm.compile_settings import PACKAGES
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.files import compact_json, sha256
from shiftadd_tvm.sdk import gpu, host, single
from shiftadd_tvm.toolchain import ZIG, find_compiler

BUNDLE, SINGLE = PACKAGES
NOTHING = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}  # its code is linked in

Json = dict[str, Any]


def prepare(kind: str | None, machine: str, device: str = "") -> None:
    """Build what does not depend on the model, so that what is missing shows before the work.

    `device` is the architecture of a GPU, for which there are bundles only. Raises `UsageError`,
    `UnsupportedError` or `OutputError`.
    """
    if device and kind == SINGLE:
        raise UsageError(
            f"--{kind} is for processors only: CUDA's libraries are not linked in; make a --{BUNDLE}."
        )
    if device and kind == BUNDLE:
        gpu.libraries()
    if kind == BUNDLE:
        sdk.prefix(machine)
    if kind == SINGLE:
        static_runtime.objects(machine)
        host.linked_objects(machine)


def package(
    folder: Path, manifest: Json, kind: str, kernels: Sequence[Path], *, embed: bool, verified: bool
) -> Json:
    """Complete the artifact in `folder` whose files `manifest` lists; return what the manifest adds.

    `kernels` are the object files that model.so was linked from. A single library holds the small files
    and, with `embed`, the parameters; `verified` is what its own manifest says.
    """
    machine = manifest["target"]["machine"]
    if kind == BUNDLE:
        shutil.copytree(sdk.prefix(machine), folder, dirs_exist_ok=True)
        if manifest["target"].get("device"):
            gpu.add(folder)
        return {"bundle": {"kind": kind, "embedded": [], "files": sdk.records(folder)}}
    names = [name for name in manifest["files"] if _linked_in(name, embed)]
    own = {**manifest, "files": _own_files(manifest), "verified": verified}
    with tempfile.TemporaryDirectory(prefix="shiftadd-link-") as place:
        inner = Path(place) / artifact.MANIFEST
        inner.write_bytes(compact_json(own))
        nothing = Path(place) / artifact.LIBRARY
        nothing.touch()
        files = {name: folder / name for name in names}
        files |= {artifact.MANIFEST: inner, artifact.LIBRARY: nothing}
        archive = folder / "lib" / sdk.ARCHIVE
        archive.parent.mkdir()
        # zig's C++ library is not everyone's: what it compiled can be linked by zig alone
        wanted = None if ZIG in find_compiler(machine) else archive
        single.link(folder / artifact.LIBRARY, wanted, kernels, files, machine)
        sdk.write_single(folder, machine, artifact.LIBRARY)
    bundle = {"kind": kind, "embedded": sorted(names), "files": sdk.records(folder)}
    return {"bundle": bundle, "files": {**manifest["files"], artifact.LIBRARY: _record(folder)}}


def _linked_in(name: str, embed: bool) -> bool:
    if name == artifact.PARAMETERS:
        return embed
    return name not in (artifact.LIBRARY, artifact.GOLDEN)


def _own_files(manifest: Json) -> Json:
    """Return the files of the linked artifact: without the golden ones, which only tests need."""
    files = {name: record for name, record in manifest["files"].items() if name != artifact.GOLDEN}
    return {**files, artifact.LIBRARY: NOTHING}


def _record(folder: Path) -> Json:
    path = folder / artifact.LIBRARY
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def summary(folder: Path, manifest: Json) -> Json:
    """Return a package's `kind` and `bytes`: of all that it ships beside parameters, tokenizer and golden
    file; of a single library, which needs nothing beside it, those of the library without the two."""
    kind, total = manifest["bundle"]["kind"], (folder / artifact.LIBRARY).stat().st_size
    total -= sum((folder / name).stat().st_size for name in manifest["bundle"]["embedded"])
    if kind == BUNDLE:
        records = manifest["bundle"]["files"].values()
        total += sum(int(record["bytes"]) for record in records)
        total += (folder / artifact.MANIFEST).stat().st_size
    return {"kind": kind, "bytes": total}
