"""What is made for ARM runs on it, emulated: a bundle alone in a root, a single library, the RPC server.

Two servers out of the bundle stand for two boards, behind a tracker on the loopback.
"""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import call_here, fails
from conftest import Tiny
from golden_gate import SYSTEM
from test_bundle import EXAMPLES, OLD, call, compiled, needed, roots
from test_bundle import SYSTEM as SYSTEM_LIBRARIES
from tvm import rpc
from tvm.rpc.tracker import Tracker

from shiftadd_tvm import boards, toolchain, workflow
from shiftadd_tvm.artifact import LIBRARY
from shiftadd_tvm.rpc_server import PROGRAM
from shiftadd_tvm.tuner import BoardAddress

PROMPT, TOKENS = "A packed model", 12
QEMU = "/usr/bin/qemu-aarch64"
SECONDS = 120  # in which anything that is waited for must happen


@pytest.fixture(scope="module")
def bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tiny, tmp_path_factory.mktemp("arm") / "app", target="arm", package="bundle")


@pytest.fixture(scope="module")
def expected(tiny: Tiny) -> str:
    """Return the text that Python generates on this machine."""
    return "".join(workflow.load(tiny.artifact).generate(PROMPT, TOKENS))


def emulated(program: Path, *words: object, libraries: Path = SYSTEM) -> list[object]:
    paths = f"LD_LIBRARY_PATH={libraries}:{SYSTEM / 'lib'}"
    return [QEMU, "-L", SYSTEM, "-E", paths, program, *words]


def test_a_bundle_runs_in_an_empty_root(bundle: Path, tmp_path: Path, expected: str) -> None:
    """With libc and libstdc++ of ARM, and nothing but the bundle, program and emulator."""
    words = (f"-I{bundle}/include", bundle / "lib" / "libshiftadd.so.0", "-o", tmp_path / "generate")
    call(*toolchain.zig("aarch64", "c++"), "-std=c++17", EXAMPLES / "generate.cpp", *words)
    shutil.copytree(bundle, tmp_path / "app")
    (tmp_path / "lib").mkdir()
    for name in (*SYSTEM_LIBRARIES, *OLD, "ld-linux-aarch64.so.1"):
        shutil.copyfile(SYSTEM / "lib" / name, tmp_path / "lib" / name)
    own = [Path(path) for path in re.findall(r"(/\S+) \(0x", call("ldd", QEMU))]
    roots(tmp_path, [Path(QEMU), *own])
    enter = ["chroot", tmp_path] if os.geteuid() == 0 else ["unshare", "-r", "chroot", tmp_path]
    inside = (QEMU, "-E", "LD_LIBRARY_PATH=/app/lib:/lib", "/generate", "/app", PROMPT, TOKENS)
    assert call(*enter, *inside) == expected
    for name in ("libtvm_runtime.so", "libtvm_ffi.so"):
        assert needed(bundle / "lib" / name) <= {*SYSTEM_LIBRARIES, *OLD, "libtvm_ffi.so"}


def test_a_single_library_runs_alone(tiny: Tiny, tmp_path: Path, expected: str) -> None:
    """It holds the runtime and the parameters; it needs libc and libm, and the program nothing else."""
    options = {"target": "arm", "package": "single-library", "embed_parameters": True}
    library = compiled(tiny, tmp_path / "app", **options) / LIBRARY
    assert needed(library) <= {"libc.so.6", "libm.so.6", *OLD}
    shutil.copyfile(library, tmp_path / LIBRARY)
    ids = workflow.load(tiny.artifact).encode(PROMPT)
    compiler = toolchain.zig("aarch64", "cc")
    words = (f"-I{tmp_path}/app/include", "-ldl", "-o", tmp_path / "plugin")
    call(*compiler, EXAMPLES / "plugin.c", *words)
    said = call(*emulated(tmp_path / "plugin", tmp_path / LIBRARY, "", *ids))
    generation = workflow.load(tiny.artifact).generate(PROMPT, 16)
    assert "".join(generation).startswith(expected)
    assert [int(word) for word in said.split()] == generation.tokens


@pytest.fixture(scope="module")
def boards_address(bundle: Path) -> Iterator[BoardAddress]:
    """Two servers out of the bundle, on the loopback; they end with the tests."""
    tracker = Tracker("127.0.0.1", port=20190, port_end=20990, silent=True)
    options = ("--key", "emu", "--tracker", f"127.0.0.1:{tracker.port}", "--bind", "127.0.0.1:0")
    words = emulated(bundle / "bin" / PROGRAM, *options, libraries=bundle / "lib")
    servers = [
        subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("listening on 127.0.0.1:")
        yield BoardAddress("127.0.0.1", tracker.port, "emu")
    finally:
        for server in servers:
            server.kill()
            server.communicate()
        tracker.terminate()


def test_two_boards_serve_at_once(boards_address: BoardAddress) -> None:
    """Each says that it is an emulated ARM; a third session would have to wait."""
    first, second = boards.request(boards_address), boards.request(boards_address)
    for session in (first, second):
        board = boards.describe(session)
        assert (board.machine, board.emulated) == ("aarch64", True)
    known = rpc.connect_tracker(boards_address.host, boards_address.port).summary()
    assert known["queue_info"]["emu"] == {"free": 0, "pending": 0}
    assert boards.count(boards_address) == 2


def test_another_key_is_refused(boards_address: BoardAddress, tmp_path: Path, bundle: Path) -> None:
    known = rpc.connect_tracker(boards_address.host, boards_address.port).summary()["server_info"]
    for port in {server["addr"][1] for server in known}:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
            # not even the key by which the tracker knows it: a session's is drawn anew
            client.sendall(struct.pack("<ii", 0xFF271, 10) + b"client:emu")
            assert struct.unpack("<i", client.recv(4)) == (0xFF271 + 2,)
    address = f"127.0.0.1:{boards_address.port}:other"
    fails(call_here("verify", bundle, "--rpc", address, cwd=tmp_path), 3, "no board", "emu")


def test_verify_on_a_board(boards_address: BoardAddress, bundle: Path, tmp_path: Path) -> None:
    """The bundle's golden prompts run through libshiftadd there."""
    address = f"127.0.0.1:{boards_address.port}:emu"
    done = call_here("verify", bundle, "--rpc", address, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["files_ok"] and said["tokens_equal"] and said["tokens_compared"] > 0
    assert 0 < said["max_logit_error"] <= said["tolerance"]


def test_tune_on_emulated_boards_keeps_nothing(boards_address: BoardAddress, tmp_path: Path) -> None:
    """Candidates are uploaded, checked and timed there; times of an emulation are no log."""
    words = ("tune", "--target", "arm", "--synthetic", "tiny", "--trials", "2")
    address = f"127.0.0.1:{boards_address.port}:emu"
    done = call_here(
        *words, "--minutes", "0.001", "--rpc", address, "-o", tmp_path / "log", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["measured"] == "rpc" and not (tmp_path / "log").exists()
    (task,) = report["tasks"]
    assert task["trials"] - task["failed"] > 0 and task["after_us"] > 0
