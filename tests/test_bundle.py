"""Bundles and single libraries: what is in them, what they need, and that C and C++ find them.

The examples are built as a project of their own, by CMake and by pkg-config. The bundle is the one that
the shell walk-through makes; it was moved.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import call as command
from command import finished
from conftest import CALIBRATION, Tiny
from tokenizers import Tokenizer

from shiftadd_tvm import config_command, cpu, sdk, workflow
from shiftadd_tvm.artifact import LIBRARY, MANIFEST, PARAMETERS, Artifact
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.inspection import inspect
from shiftadd_tvm.runtime.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "cpp"
PROMPT = (40, 50, 60, 70)
SYSTEM = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1")
OLD = ("libdl.so.2", "libpthread.so.0")  # empty since glibc 2.34, and a part of it before
MOST, MOST_SINGLE = 8_000_000, 6_000_000  # bytes of all but parameters and tokenizer
REAL = 1_420_000  # of them SmolLM2's code and manifest (test_real_model.py weighs all of its bundle)
LOADER = re.compile(r"ld-linux-[\w-]+\.so\.[12]")


def needed(library: Path) -> set[str]:
    """Return the libraries that one needs, apart from glibc's loader."""
    text = subprocess.run(
        ["readelf", "-d", library], capture_output=True, text=True, check=True
    ).stdout
    names = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    return {name for name in names if not LOADER.fullmatch(name)}


def exported(library: Path) -> set[str]:
    words = ["nm", "-D", "--defined-only", "--format=posix", library]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in text.splitlines()}


def call(*words: object, **more: str) -> str:
    """Return what a program prints; a failure shows all that it said."""
    # an idle thread sleeps soon: where processes outnumber processors, a yield takes long
    environment = {**os.environ, "TVM_THREAD_POOL_SPIN_COUNT": "10", **more}
    child = finished(words, env=environment)
    assert child.returncode == 0, f"{words}\n{child.stdout}\n{child.stderr}"
    return child.stdout


def compiled(tiny: Tiny, place: Path, **settings: object) -> Path:
    workflow.compile(tiny.packed, place, sequences=1, **settings)
    return place


@dataclass(frozen=True)
class Walk:
    folder: Path
    printed: str  # by all of its commands


@pytest.fixture(scope="module")
def walk(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """Return what the shell walk-through makes of the tiny checkpoint, and prints."""
    folder = tmp_path_factory.mktemp("walk")
    options = {"QUANTIZE": " ".join(("--bits 3", *CALIBRATION)), "COMPILE": "--sequences 1"}
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = ROOT / "examples" / "walkthrough.sh"
    return Walk(folder, call(script, tiny.source, folder, **options, PATH=here))


@pytest.fixture(scope="module")
def bundle(walk: Walk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle that lies elsewhere than where it was made."""
    return (walk.folder / "app").rename(tmp_path_factory.mktemp("bundle") / "moved app")


@pytest.fixture(scope="module")
def single(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("single") / "app"
    return compiled(tiny, place, package="single-library", embed_parameters=True)


@pytest.fixture(scope="module")
def programs(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the examples, built by find_package."""
    build = tmp_path_factory.mktemp("cmake")
    call("cmake", "-S", EXAMPLES, "-B", build, f"-DCMAKE_PREFIX_PATH={bundle}")
    call("cmake", "--build", build)
    return build


@pytest.fixture(scope="module")
def expected(bundle: Path) -> str:
    """Return the tokens that Python's host makes, as the program `plugin` prints them."""
    tokens = list(Engine(bundle).session().generate(list(PROMPT), 16))
    return " ".join(map(str, tokens)) + "\n"


def test_bundle_is_an_artifact(bundle: Path) -> None:
    manifest = Artifact(bundle).manifest["bundle"]
    assert isinstance(manifest, dict) and manifest["kind"] == "bundle"
    below = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*/*") if p.is_file()}
    assert set(manifest["files"]) == below
    fields, error = workflow.verify(bundle)
    assert error is None and fields["files_ok"]
    assert inspect(bundle)["bundle"] == "bundle"
    for name in ("shiftadd-tvm/LICENSE", "apache-tvm/NOTICE", "apache-tvm-ffi/NOTICE"):
        assert (bundle / "licenses" / name).stat().st_size > 100
    for path in (bundle / "lib").rglob("*.cmake"):  # nothing says where it was made
        assert str(bundle.parent) not in path.read_text()


def test_bundle_is_small_and_needs_little(bundle: Path) -> None:
    names = {path.name for path in (bundle / "lib").iterdir() if path.is_file()}
    assert names == {"libshiftadd.so.0", "libtvm_runtime.so", "libtvm_ffi.so"}
    for name in names:
        assert needed(bundle / "lib" / name) <= {*SYSTEM, *OLD, "libtvm_ffi.so"}, name
    assert needed(bundle / LIBRARY) <= {"libc.so.6", "libm.so.6"}
    left = (PARAMETERS, "golden.safetensors", "tokenizer.json", LIBRARY, MANIFEST)
    files = [path for path in bundle.rglob("*") if path.is_file() and path.name not in left]
    assert sum(path.stat().st_size for path in files) <= MOST - REAL


def test_the_walk_through_ends_with_what_python_generates(walk: Walk, bundle: Path) -> None:
    """Its last command is the program in C++; the example in Python prints the same and nothing else."""
    text = "".join(workflow.load(bundle).generate("Once upon a time", 32))
    assert text and walk.printed.endswith(text)
    example = ROOT / "examples" / "generate.py"
    assert call(sys.executable, example, bundle, "Once upon a time", 32) == text
    wrong = subprocess.run([sys.executable, example, bundle / "absent", "x"], capture_output=True)
    assert wrong.returncode == 4 and not wrong.stdout and b"absent" in wrong.stderr


def test_single_library_is_small_and_needs_less(single: Path) -> None:
    library = single / LIBRARY
    assert needed(library) <= {"libc.so.6", "libm.so.6"}
    parameters = (single / PARAMETERS).stat().st_size
    tokenizer = (single / "tokenizer.json").stat().st_size
    assert library.stat().st_size - parameters - tokenizer <= MOST_SINGLE - REAL
    names = exported(library)
    assert {"shiftadd_model_load", "shiftadd_generate", "__tvm_ffi__library_bin"} <= names
    assert all(name.startswith(("shiftadd_", "__tvm_ffi_", "__TVM")) for name in names)
    fields, error = workflow.verify(single)
    assert error is None and fields["files_ok"]


def test_examples_find_a_bundle(programs: Path, bundle: Path, expected: str) -> None:
    library = bundle / "lib" / "libshiftadd.so.0"
    assert call(programs / "plugin", library, bundle, *PROMPT) == expected


def test_generate_prints_what_python_generates(programs: Path, bundle: Path, single: Path) -> None:
    """The new text and nothing else; of a bundle and of a single library."""
    text = "".join(workflow.load(bundle).generate("A packed model", 24))
    for place in (bundle, single):
        assert call(programs / "generate", place, "A packed model", 24) == text
    wrong = subprocess.run([programs / "generate", bundle / "absent", "x"], capture_output=True)
    assert wrong.returncode == 4 and not wrong.stdout and b"does not exist" in wrong.stderr


def test_every_function_of_the_text_header(bundle: Path, tmp_path: Path) -> None:
    """Each says of an artifact's tokenizer what Python does; of its files in memory it says the same."""
    prefix = tmp_path / "app"
    prefix.symlink_to(bundle)
    path = str(prefix / "lib" / "pkgconfig")
    flags = call("pkg-config", "--cflags", "--libs", "shiftadd", PKG_CONFIG_PATH=path).split()
    source = ROOT / "tests" / "native" / "text_header.cpp"
    call("c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", source, "-o", tmp_path / "use", *flags)
    text = "A packed model: caf\u00e9 \U0001f642"
    *lines, handle, error = call(tmp_path / "use", bundle, text).splitlines()
    python, own = Tokenizer.from_file(str(bundle / "tokenizer.json")), workflow.load(bundle).tokenizer
    plain = python.encode(text, add_special_tokens=False).ids
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    said = {
        "count": str(python.get_vocab_size()),
        "bos": str(own.bos) if own.bos is not None else "none",
        "id": f"{plain[0]} none",
        "token": python.id_to_token(plain[1]),
        "plain": " ".join(map(str, plain)),
        "begun": " ".join(map(str, own.encode(text))),
        "whole": " ".join(map(str, python.encode(text).ids)),
        "decoded": python.decode(plain),
        "special": python.decode([plain[0], own.bos or 0], skip_special_tokens=False),
        "chat": own.render([*messages, {"role": "user", "content": text}]),
        "streamed": text[len(python.decode(plain[:1])) :],
    }
    expected = "".join(f"{name} {value}\n" for name, value in said.items())
    assert "\n".join(lines) + "\n" == 2 * expected
    assert handle == "handle shared" and error.startswith("error 4 absent has no tokenizer.json")


def test_chat_streams_answers(programs: Path, bundle: Path) -> None:
    words = [programs / "chat", bundle, "7"]
    environment = {**os.environ, "TVM_THREAD_POOL_SPIN_COUNT": "10"}
    talk = lambda: finished(words, "hi\n", env=environment, check=True)
    first = talk().stdout
    assert first.startswith("> ") and len(first) > 20 and first == talk().stdout


def test_a_single_library_runs_alone(
    programs: Path, single: Path, tmp_path: Path, expected: str
) -> None:
    """Also without any other file: its parameters are linked in."""
    alone = tmp_path / "alone.so"
    shutil.copyfile(single / LIBRARY, alone)
    for library, place in ((single / LIBRARY, str(single)), (alone, "")):
        assert call(programs / "plugin", library, place, *PROMPT) == expected


LINKING = """
#include <shiftadd/shiftadd.hpp>
#include <cstdio>
int main(int, char** argv) {
  shiftadd::Model model(argv[1]);
  shiftadd::GenerateOptions options;
  options.max_new_tokens = 16;
  const char* before = "";
  for (int32_t token : shiftadd::Session(model).generate({40, 50, 60, 70}, options)) {
    std::printf("%s%d", before, token);
    before = " ";
  }
  std::printf("\\n");
}
"""
PROJECT = """
cmake_minimum_required(VERSION 3.16)
project(test LANGUAGES CXX)
find_package(shiftadd CONFIG REQUIRED COMPONENTS @COMPONENT@)
add_executable(main main.cpp)
target_link_libraries(main PRIVATE shiftadd::@COMPONENT@)
"""


def project(folder: Path, prefix: Path, component: str, *more: str) -> Sequence[object]:
    (folder / "main.cpp").write_text(LINKING)
    (folder / "CMakeLists.txt").write_text(PROJECT.replace("@COMPONENT@", component))
    return ["cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={prefix}", *more]


@pytest.mark.parametrize("component", ["shiftadd", "static"])
def test_a_single_library_is_linked(
    component: str, single: Path, tmp_path: Path, expected: str
) -> None:
    call(*project(tmp_path, single, component))
    call("cmake", "--build", tmp_path / "build")
    program = tmp_path / "build" / "main"
    assert call(program, single) == call(program, "") == expected
    assert (LIBRARY in needed(program)) == (component == "shiftadd")


def test_pkg_config(bundle: Path, single: Path, tmp_path: Path, expected: str) -> None:
    """The examples' Makefile on a bundle, and a program of one's own on both."""
    (tmp_path / "app").symlink_to(bundle)
    call("make", "-C", EXAMPLES, f"APP={tmp_path / 'app'}", f"BUILD={tmp_path}")
    text = "".join(workflow.load(bundle).generate("A packed model", 24))
    assert call(tmp_path / "generate", bundle, "A packed model", 24) == text
    assert {"chat", "plugin"} <= {path.name for path in tmp_path.iterdir()}
    (tmp_path / "main.cpp").write_text(LINKING)
    for place in (bundle, single):
        folder = place.parent / "linked"  # a path with a blank is no pkg-config's friend
        folder.symlink_to(place)
        path = str(folder / "lib" / "pkgconfig")
        flags = call("pkg-config", "--cflags", "--libs", "shiftadd", PKG_CONFIG_PATH=path).split()
        program = tmp_path / f"main-{place.parent.name}"
        call("c++", "-std=c++17", tmp_path / "main.cpp", "-o", program, *flags)
        assert call(program, place) == expected


@pytest.mark.parametrize(
    ("component", "more", "reason"),
    [
        ("absent", [], "shiftadd has no component absent"),
        ("shiftadd", ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=mips"], "on mips"),
    ],
)
def test_find_package_says_what_does_not_fit(
    component: str, more: list[str], reason: str, bundle: Path, tmp_path: Path
) -> None:
    words = [*map(str, project(tmp_path, bundle, component, *more))]
    child = subprocess.run(words, capture_output=True, text=True)
    assert child.returncode != 0 and reason in " ".join(child.stderr.split())


def test_verify_reads_the_whole_bundle(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    header = copy / "include" / "shiftadd" / "shiftadd.h"
    header.write_bytes(header.read_bytes()[:-1])
    with pytest.raises(BadFileError, match=r"include/shiftadd/shiftadd\.h has sha256"):
        Artifact(copy).check_hashes()
    header.unlink()
    with pytest.raises(BadFileError, match=r"include/shiftadd/shiftadd\.h is missing"):
        Artifact(copy).check_hashes()
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("../outside/file", "/etc/passwd", "shiftadd.h"):
        manifest["bundle"]["files"] = {name: {"bytes": 1, "sha256": "0"}}
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BadFileError, match="expected a path below a subfolder"):
            Artifact(copy).check_hashes()


def test_what_cannot_be_packaged(tiny: Tiny, tmp_path: Path) -> None:
    options = ("--bundle", "--single-library", "-o", tmp_path / "app")
    both = command("compile", tiny.packed, *options)
    assert both.returncode == 2 and "choose one" in both.stderr
    with pytest.raises(UsageError, match="add --single-library"):
        CompileSettings(package="bundle", embed_parameters=True)
    assert not list(tmp_path.iterdir())


def roots(folder: Path, libraries: Sequence[Path]) -> None:
    """Fill an empty root with the C and C++ libraries alone."""
    for library in libraries:
        place = folder / library.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library.resolve(), place)
        place.chmod(0o755)


def test_a_bundle_runs_in_an_empty_root(
    programs: Path, bundle: Path, tmp_path: Path
) -> None:
    """With libc and libstdc++, and not one other file than the bundle and the program."""
    found = call("ldd", bundle / "lib" / "libtvm_ffi.so")
    roots(tmp_path, [Path(path) for path in re.findall(r"(/\S+) \(0x", found)])
    shutil.copytree(bundle, tmp_path / "app")
    shutil.copy(programs / "generate", tmp_path / "generate")
    enter = ["chroot", tmp_path] if os.geteuid() == 0 else ["unshare", "-r", "chroot", tmp_path]
    said = call(*enter, "/generate", "/app", "A packed model", 24, LD_LIBRARY_PATH="/app/lib")
    assert said == "".join(workflow.load(bundle).generate("A packed model", 24))


def test_config(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, expected: str, bundle: Path
) -> None:
    prefix = sdk.prefix(cpu.machine())
    config_command.config(prefix=True)
    assert capsys.readouterr().out == f"{prefix}\n"
    config_command.config(cmakedir=True)
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "shiftaddConfig.cmake").is_file()
    config_command.config(cflags=True, libs=True)
    flags = capsys.readouterr().out.split()
    (tmp_path / "main.cpp").write_text(LINKING)
    call("c++", "-std=c++17", tmp_path / "main.cpp", "-o", tmp_path / "main", *flags)
    assert call(tmp_path / "main", bundle) == expected
    with pytest.raises(UsageError, match="expected --cmakedir"):
        config_command.config()
