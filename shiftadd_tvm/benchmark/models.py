"""The bench of a whole model: decode and prefill of an artifact, its peers, and the memory's roof.

One round of decode is a turn of each contender: memory probe, our next tokens, each peer's next tokens.
Rounds of prefill are apart. Every figure is a median over all rounds; a ratio is a peer's median time by
ours, so above 1 we are faster. What a step reads is counted from the manifest (`accounting.py`), and its
share of the roof is (bytes read / median step) / (median bandwidth of the probe).
"""

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shiftadd_tvm import cpu
from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.benchmark import accounting, game, memory, peers, statistics
from shiftadd_tvm.benchmark.game import Game
from shiftadd_tvm.benchmark.turns import Fields
from shiftadd_tvm.cuda import driver, reading
from shiftadd_tvm.errors import UsageError

ROUNDS = 5
PREFILLS = 3

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What is to be measured."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    threads: int | None = None  # None: all processors
    baselines: bool = False
    probe_bytes: int | None = None  # None: several times the last cache
    beside: Path | None = None  # an artifact of the same shape in float16, which takes part

    def __post_init__(self) -> None:
        """Check every value; raises `UsageError`."""
        for name in ("prompt_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is {getattr(self, name)}, expected 1 or more.")


def check(artifact: Artifact, request: Request) -> None:
    """Raise unless the artifact has a bench's functions and a context for all tokens."""
    accounting.check(artifact)
    wanted, limit = context(request), artifact.number("limits", "context")
    if wanted > limit:
        raise UsageError(
            f"--prompt-tokens and --new-tokens make {wanted} tokens, the context of {artifact.path} "
            f"is {limit}; ask for fewer, or compile with a larger --context."
        )


def context(request: Request) -> int:
    """Return the positions that a request needs."""
    return request.prompt_tokens + _decoded(request)


def _decoded(request: Request) -> int:
    """Return the tokens that are decoded: whole rounds."""
    return _each(request) * ROUNDS


def _each(request: Request) -> int:
    return math.ceil(request.new_tokens / ROUNDS)


def measure(
    path: Path, request: Request, progress: Progress = lambda done, total, what: None
) -> Fields:
    """Return the fields of `bench --json` for the artifact in `path`."""
    artifact = Artifact(path)
    check(artifact, request)
    threads, load = request.threads or cpu.cores(), statistics.load()
    common: Fields = {"threads": threads, "prompt_tokens": request.prompt_tokens}
    probed = request.probe_bytes or (reading.NBYTES if artifact.gpu else memory.probe_bytes())
    progress(0, PREFILLS + ROUNDS, "loading")
    ours = {**common, "artifact": str(path), "probe_bytes": probed}
    with (
        tempfile.TemporaryDirectory(prefix="shiftadd-peers-") as folder,
        Game("runtime.measured", ours) as table,
    ):
        if request.baselines:
            sizes = {"decoded_tokens": _decoded(request), "folder": folder}
            shape = {**_shape(artifact), **common, **sizes}
            on_gpu, own = bool(artifact.gpu), peers.own(request.beside) if request.beside else []
            found = peers.on_gpus() if on_gpu else peers.models(round(_bits(artifact)))
            table.seat([*own, *found], shape)
        times = _play(table, _each(request), progress)
    fields = _fields(artifact, request, times)
    compared = {name: times.compared(table.infos[name], name, request) for name in table.peers()}
    return {
        "threads": threads,
        **({"device": gpu.name} if artifact.gpu and (gpu := driver.gpu()) else {}),
        **fields,
        "baselines": {**compared, **table.absent},
        "notes": statistics.notes(fields["dram_bandwidth_spread"], load, threads),
    }


def _bits(artifact: Artifact) -> float:
    bits = artifact.section("quantization").get("bits")
    assert isinstance(bits, int | float)
    return bits


def _shape(artifact: Artifact) -> Fields:
    names = ("hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocabulary")
    tied = artifact.section("model").get("tied_embeddings")
    sizes: Fields = {name: artifact.number("model", name) for name in names}
    return {**sizes, "tied_embeddings": tied, "context": artifact.number("limits", "context")}


class _Times:
    """The seconds of every turn, by contender, and the rates of the probe, by reading."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = defaultdict(list)
        self.decode: dict[str, list[float]] = defaultdict(list)
        self.prefill: dict[str, list[float]] = defaultdict(list)
        self.sample: list[float] = []
        self.operators: dict[str, list[list[float]]] = defaultdict(list)  # each round's calls

    def by_operator(self) -> list[Fields]:
        """Return the calls and the median seconds of each operator in a decode step, longest first."""
        rows = [
            {"op": op, "calls": len(rounds[0]), "seconds": statistics.median([*map(sum, rounds)])}
            for op, rounds in self.operators.items()
        ]
        return sorted(rows, key=lambda row: -row["seconds"])

    def compared(self, info: Fields, name: str, request: Request) -> Fields:
        """Return what is said of a peer."""
        decode, prefill = (statistics.median(t[name]) for t in (self.decode, self.prefill))
        return {
            **info,
            "decode_tokens_per_second": 1 / decode,
            "decode_spread": statistics.spread(self.decode[name]),
            "prefill_tokens_per_second": request.prompt_tokens / prefill,
            "ratio": decode / statistics.median(self.decode[game.OURS]),
            "prefill_ratio": prefill / statistics.median(self.prefill[game.OURS]),
        }


def _play(table: Game, tokens: int, progress: Progress) -> _Times:
    times, total = _Times(), PREFILLS + ROUNDS
    for done in range(PREFILLS):
        progress(done, total, f"prefill, round {done + 1} of {PREFILLS}")
        for name, seconds in table.round(lambda player: player.play("prefill")).items():
            times.prefill[name].append(seconds)
    for done in range(ROUNDS):
        progress(PREFILLS + done, total, f"decode, round {done + 1} of {ROUNDS}")
        for name, rate in table.ours().play("probe").items():
            times.rates[name].append(rate)
        each = table.round(lambda player: player.play("decode", tokens=tokens))
        for name, seconds in each.items():
            times.decode[name] += seconds
        times.sample.append(table.ours().play("sample"))
        for op, calls in table.ours().play("profile").items():
            times.operators[op].append(calls)
    progress(total, total, "done")
    return times


def _fields(artifact: Artifact, request: Request, times: _Times) -> Fields:
    decode, prefill = (statistics.median(t[game.OURS]) for t in (times.decode, times.prefill))
    rates = memory.roof(times.rates)
    bandwidth = statistics.median(rates)
    weights = accounting.weight_bytes(artifact)
    length = request.prompt_tokens + (_decoded(request) + 1) / 2  # of the middle step
    cache = accounting.cache_bytes(artifact, length)
    return {
        "target": artifact.section("target")["preset"],
        "bits": _bits(artifact),
        "prompt_tokens": request.prompt_tokens,
        "new_tokens": len(times.decode[game.OURS]),
        "decode_tokens_per_second": 1 / decode,
        "decode_spread": statistics.spread(times.decode[game.OURS]),
        "prefill_tokens_per_second": request.prompt_tokens / prefill,
        "prefill_spread": statistics.spread(times.prefill[game.OURS]),
        "sample_seconds": statistics.median(times.sample),
        "operators": times.by_operator(),
        "weight_bytes": weights,
        "cache_bytes": round(cache),
        "bytes_per_token": weights + round(cache),
        "dram_bandwidth_bytes_per_second": bandwidth,
        "dram_bandwidth_best": max(rates),
        "dram_bandwidth_spread": statistics.spread(rates),
        "dram_readings": memory.readings(times.rates),
        "bandwidth_fraction": (weights + cache) / decode / bandwidth,
        "load": artifact.manifest.get("load"),
    }
