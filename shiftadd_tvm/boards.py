"""Boards that a tracker of TVM's RPC knows, and what `shiftadd-rpc-server` on them can do.

TVM's RPC is for trusted networks: whoever reaches a server and knows its key runs code there.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tvm import rpc

from shiftadd_tvm import cpu
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.tuner import BoardAddress

Array = np.ndarray

SERVER = "shiftadd-rpc-server"
IDS, LOGITS = "ids.bin", "logits.bin"
SESSION = 600  # seconds that a session may last
REFUSED = (OSError, RuntimeError, ValueError)  # what TVM's client raises


@dataclass(frozen=True)
class Board:
    """What one board says of itself."""

    name: str
    machine: str
    cores: int
    emulated: bool  # by qemu's user mode: its times mean nothing
    features: frozenset[str]
    processor: str

    def missing(self, backend: Backend) -> list[str]:
        """Return what it lacks to run a preset's kernels; an emulated one shows no features."""
        if self.machine != backend.machine:
            return [backend.machine]
        return [] if self.emulated else sorted(set(backend.features) - self.features)


def count(address: BoardAddress) -> int:
    """Return how many boards a tracker has under a key; `UnsupportedError` for none."""
    try:
        known = rpc.connect_tracker(address.host, address.port).summary()["server_info"]
    except REFUSED as error:
        raise UnsupportedError(
            f"No tracker answers at {address.host}:{address.port} ({error}); start one there: "
            "python -m tvm.exec.rpc_tracker."
        ) from error
    found = sum(server.get("key") == f"server:{address.key}" for server in known)
    if not found:
        keys = sorted({str(server.get("key", "")).removeprefix("server:") for server in known})
        raise UnsupportedError(
            f"The tracker at {address.host}:{address.port} has no board of the key {address.key!r}: it "
            f"has {', '.join(keys) or 'none at all'}; start {SERVER} there."
        )
    return found


def request(address: BoardAddress) -> Any:
    """Return a session on a free board, as TVM's client has it; `UnsupportedError` where none comes."""
    try:
        tracker = rpc.connect_tracker(address.host, address.port)
        return tracker.request(address.key, session_timeout=SESSION)
    except REFUSED as error:
        raise UnsupportedError(
            f"No board of the key {address.key!r} came: {str(error).strip().splitlines()[-1]}."
        ) from error


def describe(session: Any) -> Board:
    """Return what the board of a session is; `UnsupportedError` where another server runs on it."""
    try:
        said = json.loads(session.get_function("shiftadd.rpc.board")())
    except (AttributeError, *REFUSED) as error:
        raise UnsupportedError(f"The board does not run {SERVER}; start it there.") from error
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(said["cpuinfo"])
        file.flush()
        path = Path(file.name)
        features, parts = cpu.features(path), sorted(cpu.parts(path))
        named = cpu.model(path)
    processor = ", ".join(f"{a:#x}:{b:#x}" for a, b in parts) or named
    machine, cores = str(said["machine"]), int(said["cores"])
    return Board(said["name"], machine, cores, bool(said["emulated"]), features, processor)


def run_golden(address: BoardAddress, artifact: Path, ids: Array) -> tuple[Array, Array]:
    """Return an artifact's logits (P, T, V) of ids (P, T) on a board: by prefill, and token by token.

    The artifact is uploaded, and checked there. Raises `UnsupportedError`.
    """
    count(address)  # a tracker lets wait who asks for a key that it does not know
    session = request(address)
    board = describe(session)
    for path in sorted(path for path in artifact.iterdir() if path.is_file()):  # of a bundle too
        session.upload(str(path))
    found = []
    run = session.get_function("shiftadd.rpc.logits")
    for sequence in ids:
        session.upload(bytearray(sequence.astype("<i4").tobytes()), IDS)
        try:
            run(IDS, LOGITS)
        except REFUSED as error:
            raise UnsupportedError(
                f"{artifact} does not run on {board.name}: {str(error).strip().splitlines()[-1]}"
            ) from error
        logits = np.frombuffer(session.download(LOGITS), "<f4")
        found.append(logits.reshape(2, len(sequence), -1))
    both = np.stack(found)
    return both[:, 0], both[:, 1]
