"""libshiftadd: Python and C++ agree, sanitizers find nothing, damaged artifacts are a status."""

import ctypes
import importlib.util
import json
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import native_programs
import numpy as np
import pytest
from conftest import Tiny

from shiftadd_tvm import cpu
from shiftadd_tvm.artifact import LIBRARY, MANIFEST, PARAMETERS
from shiftadd_tvm.errors import BadFileError, UnsupportedError, UsageError
from shiftadd_tvm.files import sha256
from shiftadd_tvm.runtime import library, native, native_build
from shiftadd_tvm.runtime.engine import Engine, Sampling

FROZEN = Path(__file__).parent / "frozen" / "artifact-v1"
MUTATIONS = 10_000
FUZZ_RUNS = 20_000


def runtime_libraries() -> tuple[Path, Path]:
    spec = importlib.util.find_spec("tvm_ffi")
    assert spec is not None and spec.submodule_search_locations
    ffi = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_ffi.so"
    return library.find_runtime(), ffi


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs under AddressSanitizer and UndefinedBehaviorSanitizer."""
    wanted = {"checks": None, "mutations": native_programs.LOADER}
    folder = tmp_path_factory.mktemp("address")
    return native_programs.build(folder, wanted, "address,undefined")


def test_the_abi_keeps_its_promises(tiny: Tiny, checked: dict[str, Path]) -> None:
    """Sessions, forks, batches, callbacks, cancelling, threads, misuse: under the sanitizers."""
    found = native_programs.run(checked["checks"], tiny.artifact, *runtime_libraries())
    assert found == "ok\n"


def test_python_and_cpp_give_the_same_tokens(tiny: Tiny, checked: dict[str, Path]) -> None:
    """8 prompts x 64 tokens, greedy and seeded."""
    printed = native_programs.run(checked["checks"], tiny.artifact, *runtime_libraries(), "tokens")
    rows = [[int(token) for token in line.split()] for line in printed.splitlines()]
    assert [len(row) for row in rows] == [64] * 16
    session = Engine(tiny.artifact, threads=1).session()
    for index, row in enumerate(rows):
        which, seeded = index % 8, index >= 8
        sampling = Sampling(0.9, 40, 0.95, 1.1, which) if seeded else Sampling()
        session.close()
        session.prefill(prompt(which, session.engine.vocabulary))
        for step, token in enumerate(row):
            assert session.sample(sampling, step) == token, (index, step)
            session.decode(token)
    assert rows[0] != rows[8]


def prompt(which: int, vocabulary: int) -> list[int]:
    """Return the prompt that native/checks.cpp makes: std::mt19937 is NumPy's legacy generator."""
    words = np.random.RandomState(which).randint(0, 1 << 32, 3 + 5 * which, np.uint32)
    return [int(word) % vocabulary for word in words]


def test_ten_thousand_damaged_artifacts(checked: dict[str, Path]) -> None:
    """Each is refused by a status, or loads where nothing that is read at load is damaged."""
    printed = native_programs.run(checked["mutations"], FROZEN, MUTATIONS, 0)
    counts = {}
    for line in printed.splitlines():
        kind, _, numbers = line.partition(": ")
        refused, loaded = numbers.split(", ")
        counts[kind] = int(refused.split()[0]), int(loaded.split()[0])
    assert sum(map(sum, counts.values())) == MUTATIONS
    for kind in ("bits of the header", "a truncated file", "a longer file", "a missing file"):
        assert counts[kind][1] == 0, kind
    assert counts["bits of the weights"][0] == 0  # those are for verify, which the program asks too


def test_fuzzing_the_loader(tmp_path: Path) -> None:
    """libFuzzer, with the frozen artifact as its first input, and its own dictionary of that."""
    units = {"fuzz_loader": native_programs.LOADER}
    program = native_programs.build(tmp_path, units, "fuzzer,address,undefined")["fuzz_loader"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    manifest, parameters = ((FROZEN / name).read_bytes() for name in (MANIFEST, PARAMETERS))
    (corpus / "frozen").write_bytes(manifest + b"\0" + parameters[: 1 << 14])
    with tarfile.open(corpus / "archive", "w") as archive:
        archive.add(FROZEN / "tokenizer_config.json", MANIFEST)
    (corpus / "small").write_bytes(b'{"schema": 1}\0' + (2).to_bytes(8, "little") + b"{}")
    options = ("-runs=" + str(FUZZ_RUNS), "-max_total_time=40", "-seed=1", "-malloc_limit_mb=512")
    native_programs.run(program, *options, f"-artifact_prefix={tmp_path}/", corpus)


def test_no_data_races(tiny: Tiny, tmp_path: Path) -> None:
    """The same checks under ThreadSanitizer; TVM's own libraries are not built with it, so that what
    happens inside of them is not seen."""
    program = native_programs.build(tmp_path, {"checks": None}, "thread")["checks"]
    assert native_programs.run(program, tiny.artifact, *runtime_libraries()) == "ok\n"


def changed(tiny: Tiny, folder: Path, **keys: object) -> Path:
    """Return a copy of the tiny artifact with other values in its manifest."""
    shutil.copytree(tiny.artifact, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest | keys))
    return folder


def load(path: Path) -> None:
    """Load an artifact by the library alone, without Python's own checks."""
    native.load_runtime()
    params = native.ModelParams(threads=1, sequences=1)
    handle = native.create("model_load", str(path).encode(), ctypes.byref(params))
    native.load().shiftadd_model_free(handle)


def test_the_library_says_what_python_says(tiny: Tiny, tmp_path: Path) -> None:
    """Other versions, machines and processors, and files that are no artifact."""
    load(tiny.artifact)
    target = json.loads((tiny.artifact / MANIFEST).read_text())["target"]
    with pytest.raises(UnsupportedError, match="artifact schema 9, this version reads 1"):
        load(changed(tiny, tmp_path / "schema", schema=9))
    with pytest.raises(
        UnsupportedError, match="compiled for sparc .*this machine is " + cpu.machine()
    ):
        load(changed(tiny, tmp_path / "machine", target=target | {"machine": "sparc"}))
    with pytest.raises(UnsupportedError, match="needs the processor features no_such_feature"):
        load(changed(tiny, tmp_path / "cpu", target=target | {"features": ["no_such_feature"]}))
    load(changed(tiny, tmp_path / "huge", load="hugepages"))
    with pytest.raises(BadFileError, match='load is "?disk"?, expected "map" or "hugepages"'):
        load(changed(tiny, tmp_path / "load", load="disk"))
    with pytest.raises(BadFileError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(BadFileError, match="is a file, but no tar archive of an artifact"):
        load(tiny.artifact / MANIFEST)


def test_one_file_is_an_artifact_too(tiny: Tiny, tmp_path: Path) -> None:
    """Archived by Python and by tar; a damaged one is a status."""
    packed, by_tar = tmp_path / "python.tar", tmp_path / "tar.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(tiny.artifact, ".")
    subprocess.run(["tar", "-cf", str(by_tar), "-C", str(tiny.artifact), "."], check=True)
    before = set(Path(tempfile.gettempdir()).glob("shiftadd-*.so"))
    for path in (packed, by_tar):
        load(path)
    assert set(Path(tempfile.gettempdir()).glob("shiftadd-*.so")) == before
    content = bytearray(by_tar.read_bytes())
    (tmp_path / "short.tar").write_bytes(content[: len(content) // 2])
    content[130] ^= 1  # of the first size
    (tmp_path / "bad.tar").write_bytes(content)
    for name, message in (("short", "bytes, .* follow|holds no"), ("bad", "no header at byte 0")):
        with pytest.raises(BadFileError, match=message):
            load(tmp_path / f"{name}.tar")


def test_a_library_that_is_no_model(tiny: Tiny, tmp_path: Path) -> None:
    """Its hash fits, and it is no shared library, or one without our functions."""
    bad = changed(tiny, tmp_path / "bad")
    for content in (b"no library", Path(native.LIBRARY).read_bytes()):
        (bad / LIBRARY).unlink()
        (bad / LIBRARY).write_bytes(content)
        manifest = json.loads((bad / MANIFEST).read_text())
        manifest["files"][LIBRARY] = {"bytes": len(content), "sha256": sha256(bad / LIBRARY)}
        (bad / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(BadFileError, match=r"model\.so cannot be loaded: |no virtual machine"):
            load(bad)


def test_features_of_this_processor() -> None:
    """What the kernel lists, the library finds by itself: in a chroot there is no /proc."""
    known = {
        "ssse3",
        "sse4_2",
        "avx",
        "avx2",
        "bmi2",
        "f16c",
        "fma",
        "avx512f",
        "avx512bw",
        "asimd",
    }
    listed = known & cpu.features()
    assert listed
    text = (native_build.SOURCES / "src" / "processor.cpp").read_text()
    assert all(f'"{name}"' in text for name in listed)


def test_a_session_forks_and_is_cut(tiny: Tiny) -> None:
    session = Engine(tiny.artifact, threads=1, sequences=3).session()
    kept = session.prefill([5, 6, 7])
    fork = session.fork()
    other = fork.decode(8)
    assert fork.tokens == [5, 6, 7, 8] and session.tokens == [5, 6, 7]
    assert np.array_equal(session.decode(8), other)
    fork.truncate(3)
    assert np.array_equal(fork.decode(8), other)
    session.close()
    assert np.array_equal(
        session.prefill([5, 6, 7]), kept
    )  # an array outlives its session's change


def test_a_call_is_cancelled_by_another_thread(tiny: Tiny) -> None:
    session = Engine(tiny.artifact, threads=1).session()
    begun = threading.Event()

    def consume(_: np.ndarray) -> None:
        begun.set()
        while begun.is_set():  # until the other thread has cancelled
            time.sleep(0.001)

    def cancel() -> None:
        begun.wait()
        session.cancel()
        begun.clear()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(InterruptedError, match="cancelled"):
        session.score(list(range(5, 100)), consume)
    canceller.join()
    with pytest.raises(ZeroDivisionError):  # what consume raises comes through
        session.score([5, 6], lambda rows: print(1 // 0))


def test_calls_by_name(tiny: Tiny) -> None:
    engine = Engine(tiny.artifact, threads=1)
    ids = np.arange(9, dtype=np.int32)
    (x,) = engine.call("embed", ids)
    (shifted,) = engine.call("embed", ids[1:])  # begins where kernels cannot load from
    assert x.dtype == np.float32 and np.array_equal(x[1:], shifted)
    for arrays, message in (
        ([ids.astype(np.int64)], "has dtype int64, expected int32"),
        ([ids[None]], r"has shape \(1, 9\), expected \(n\)"),
        ([], "needs an input ids"),
        ([ids, ids], "takes 1 inputs, 2 were given"),
    ):
        with pytest.raises(UsageError, match=message):
            engine.call("embed", *arrays)


def test_headers_are_c_and_cpp(tmp_path: Path) -> None:
    include = f"-I{native_build.SOURCES / 'include'}"
    for compiler, standard, name in (("cc", "c99", "shiftadd.h"), ("c++", "c++17", "shiftadd.hpp")):
        source = tmp_path / f"use.{'c' if compiler == 'cc' else 'cpp'}"
        source.write_text(f'#include "shiftadd/{name}"\n')
        flags = (f"-std={standard}", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only")
        subprocess.run([compiler, *flags, include, str(source)], check=True)


def test_only_the_abi_is_exported() -> None:
    """And it is what the headers declare; versions agree."""
    folder = native_build.SOURCES / "include" / "shiftadd"
    header = "".join(path.read_text() for path in sorted(folder.glob("*.h")))
    command = ["nm", "-D", "--defined-only", str(native.LIBRARY)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    exported = {line.split()[-1] for line in printed.splitlines()}
    assert all(name.startswith("shiftadd_") for name in exported)
    assert all(f"{name}(" in header for name in exported)
    loaded = native.load()
    loaded.shiftadd_version.restype = ctypes.c_char_p
    assert f'"{loaded.shiftadd_version().decode()}"' in header
    assert native_build.SONAME.endswith(f".{native.ABI}")


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.OVERRIDE, str(tmp_path / "libshiftadd.so"))
    native.load.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match="native_build"):
            native.load()
    finally:
        native.load.cache_clear()


def test_a_system_without_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build.platform, "system", lambda: "Darwin")
    with pytest.raises(native_build.BuildError, match="runs on Linux .* this is Darwin"):
        native_build.compiler()
