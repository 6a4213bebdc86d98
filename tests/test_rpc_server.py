"""shiftadd-rpc-server: where it listens, whom it refuses, what it says; addresses of boards."""

import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import call_here, fails

from shiftadd_tvm import cpu, rpc_server
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.tuner import BoardAddress

MAGIC = 0xFF271
MISMATCH = MAGIC + 2


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rpc_server.build(tmp_path_factory.mktemp("server"), cpu.machine())


@pytest.fixture(scope="module")
def port(program: Path) -> Iterator[int]:
    words = [str(program), "--key", "box", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.readline()
        assert said.startswith("listening on 127.0.0.1:") and "trusted networks only" in said
        yield int(said.split(":")[1].split()[0])
        child.kill()


def greet(port: int, magic: int, key: bytes) -> bytes:
    """Return what the server answers to a client with this key."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(struct.pack("<ii", magic, len(key)) + key)
        try:
            client.shutdown(socket.SHUT_WR)
            return client.recv(64)
        except OSError:  # it hung up before it had read everything
            return b""


def test_unknown_keys_are_refused(port: int) -> None:
    for key in (b"client:other", b"client:boxes", b"box", b"client:bo"):
        assert greet(port, MAGIC, key) == struct.pack("<i", MISMATCH)
    assert greet(port, MAGIC + 1, b"client:box") == b""
    expected = struct.pack("<ii", MAGIC, len("server:box")) + b"server:box"
    assert greet(port, MAGIC, b"client:box") in (expected, expected[:4], expected[:8])  # still serves


def test_a_length_that_lies_is_no_allocation(port: int) -> None:
    for size in (-1, 1 << 30):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(struct.pack("<ii", MAGIC, size))
            assert client.recv(64) == b""


@pytest.mark.parametrize(
    "words",
    [[], ["--key", "a b"], ["--key", 'a"'], ["--key", "a", "--bind", "x"], ["--key", "a", "--no", "1"]],
)
def test_bad_options_are_one_sentence(program: Path, words: list[str]) -> None:
    child = subprocess.run([str(program), *words], capture_output=True, text=True, check=False)
    assert child.returncode == 2 and child.stderr.startswith("shiftadd-rpc-server: ")
    assert "trusted networks" in child.stderr


def test_addresses(tmp_path: Path) -> None:
    assert BoardAddress.parse("::1:9190:pi5") == BoardAddress("::1", 9190, "pi5")
    for text in ("host", "host:1", "host:x:key", "host:0:key", ":1:key", "host:70000:key"):
        with pytest.raises(UsageError, match="expected HOST:PORT:KEY"):
            BoardAddress.parse(text)
    fails(call_here("tune", "--rpc", "host", cwd=tmp_path), 2, "--rpc", "HOST:PORT:KEY")


def test_it_listens_on_loopback_alone_unless_told(program: Path) -> None:
    words = [str(program), "--key", "box"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        if said := child.stdout.readline():
            assert said.startswith("listening on 127.0.0.1:9090 ")
            listening = Path("/proc/net/tcp").read_text().split("\n")[1:]
            held = [line.split()[1] for line in listening if line.strip()]
            assert [place for place in held if place.endswith(":2382")] == ["0100007F:2382"]
        else:  # another program has the port
            assert "127.0.0.1:9090" in child.stderr.read()
        child.kill()
