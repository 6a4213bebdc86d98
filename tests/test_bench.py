"""bench: what it counts, what it says, and that a missing or dying peer costs one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import call, call_here, fails, interrupt, result
from conftest import Tiny

from shiftadd_tvm import compiler, families, parameters, shapes
from shiftadd_tvm.artifact import MANIFEST, Artifact
from shiftadd_tvm.benchmark import accounting, kernels, memory, models, peers, statistics, tables
from shiftadd_tvm.benchmark.game import Game
from shiftadd_tvm.benchmark.peers import Peer
from shiftadd_tvm.benchmark.turns import Contender, ContenderError
from shiftadd_tvm.errors import UnsupportedError, UsageError
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.synthetic import SyntheticModel

PROMISED = {  # by the command line's contract
    "decode_tokens_per_second",
    "prefill_tokens_per_second",
    "weight_bytes",
    "dram_bandwidth_bytes_per_second",
    "bandwidth_fraction",
    "baselines",
}
SMALL = ("--prompt-tokens", 8, "--new-tokens", 5, "--threads", 1)


def request(**values: Any) -> models.Request:
    return models.Request(**{**{"prompt_tokens": 8, "new_tokens": 5, "threads": 1}, **values})


def measure(tiny: Tiny, **values: Any) -> dict[str, Any]:
    return models.measure(tiny.artifact, request(probe_bytes=1 << 22, **values))


def test_weight_bytes_are_the_sum_of_the_manifest(tiny: Tiny, tmp_path: Path) -> None:
    manifest = json.loads((tiny.artifact / MANIFEST).read_text())
    sizes = {
        p["name"]: int(np.prod(p["shape"])) * np.dtype(p["dtype"]).itemsize
        for p in manifest["parameters"]
    }
    assert manifest["looked_up"] == []  # the embedding is the head too
    assert accounting.weight_bytes(Artifact(tiny.artifact)) == sum(sizes.values())
    untied = tmp_path / "untied"
    untied.mkdir()
    for path in tiny.artifact.iterdir():
        (untied / path.name).symlink_to(path)
    (untied / MANIFEST).unlink()
    embedding = "model.embed_tokens.weight"
    (untied / MANIFEST).write_text(json.dumps({**manifest, "looked_up": [embedding]}))
    assert accounting.weight_bytes(Artifact(untied)) == sum(sizes.values()) - sizes[embedding]


@pytest.mark.parametrize(("tied", "expected"), [(True, []), (False, ["weight", "weight_scale"])])
def test_an_embedding_beside_a_head_is_looked_up(tied: bool, expected: list[str]) -> None:
    config = {**shapes.config(shapes.TINY), "tie_word_embeddings": tied}
    model = SyntheticModel(config, QuantizeSettings(bits=2, embedding_bits=8))
    groups = parameters.groups(model, 64, "int16")
    found = compiler.looked_up(model, parameters.parameters(model, groups, 8, 64))
    assert found == [f"model.embed_tokens.{suffix}" for suffix in expected]


def test_cache_bytes(tiny: Tiny) -> None:
    artifact = Artifact(tiny.artifact)
    sizes = [artifact.number("model", name) for name in ("layers", "kv_heads", "head_dim")]
    position = 2 * 4 * int(np.prod(sizes))  # keys and values in float32
    assert accounting.cache_bytes(artifact, 10) == 10 * position


def test_an_artifact_of_an_earlier_version_is_refused() -> None:
    frozen = Path(__file__).parent / "frozen" / "artifact-v1"
    with pytest.raises(UnsupportedError, match="had no bench"):
        models.measure(frozen, request())


def test_an_artifact_is_measured(tiny: Tiny) -> None:
    fields = result("bench", tiny.artifact, *SMALL)
    assert fields.keys() >= PROMISED
    assert fields["baselines"] == {}
    weights = accounting.weight_bytes(Artifact(tiny.artifact))
    assert fields["weight_bytes"] == weights
    read = weights + fields["cache_bytes"]
    assert fields["bytes_per_token"] == read
    rate = read * fields["decode_tokens_per_second"]
    share = rate / fields["dram_bandwidth_bytes_per_second"]
    assert fields["bandwidth_fraction"] == pytest.approx(share, rel=1e-2)
    assert fields["dram_bandwidth_bytes_per_second"] == max(fields["dram_readings"].values())
    assert fields["model"] == str(tiny.artifact) and fields["bits"] == 3
    calls = {row["op"]: row["calls"] for row in fields["operators"]}
    layers = Artifact(tiny.artifact).number("model", "layers")
    assert calls["attend"] == layers and calls["embed"] == calls["dense"] == 1
    assert all(row["seconds"] > 0 for row in fields["operators"])
    text = tables.model(fields)
    assert "between operators" in text
    assert "decode (5 after 8 tokens)" in text and "of the roof" in text


def test_a_synthetic_model_is_measured() -> None:
    fields = result("bench", "--synthetic", shapes.TINY, "--bits", 2, *SMALL)
    assert fields.keys() >= PROMISED
    assert (fields["model"], fields["bits"]) == (shapes.TINY, 2)


def test_peers_that_are_not_installed_are_named(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "installed", lambda module: False)
    fields = measure(tiny, baselines=True)
    assert set(fields["baselines"]) == {"torch-bf16", "llama.cpp-Q3_K"}
    for peer in fields["baselines"].values():
        assert peer["ratio"] is None and peer["error"].startswith("not installed: pip install")
    assert "not installed: pip install" in tables.model({**fields, "model": "tiny"})
    assert fields["decode_tokens_per_second"] > 0


def test_the_ratio_to_torch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    only = [Peer("torch-bf16", "baselines.torch_model", *peers.TORCH)]
    monkeypatch.setattr(peers, "models", lambda bits: only)
    fields = measure(tiny, baselines=True)
    peer = fields["baselines"]["torch-bf16"]
    for kind, ratio in (("decode", "ratio"), ("prefill", "prefill_ratio")):
        speed = f"{kind}_tokens_per_second"
        assert peer[ratio] == pytest.approx(fields[speed] / peer[speed])
    assert "note" not in peer  # the tiny model is built whole
    assert "torch-bf16" in tables.model({**fields, "model": "tiny"})


def test_a_peer_that_dies_is_out(tiny: Tiny) -> None:
    # a module that plays no part: it ends without an answer
    silent = Peer("silent", "benchmark.tables", (), "")
    wanted = {"threads": 1, "artifact": str(tiny.artifact), "prompt_tokens": 1}
    with Game("runtime.measured", {**wanted, "probe_bytes": 1 << 20}) as game:
        game.seat([silent], wanted)
        assert game.peers() == []
        assert "it died (exit status 0)" in game.absent["silent"]["error"]
        assert set(game.round(lambda player: player.play("sample"))) == {""}


def test_a_contender_reports_its_own_errors() -> None:
    wanted = {"threads": 1, "artifact": "nowhere", "prompt_tokens": 1, "probe_bytes": 1 << 20}
    with pytest.raises(Exception, match="nowhere holds no manifest.json") as caught:
        Contender("runtime.measured", wanted)
    assert caught.value.exit_code == 4


def test_unknown_names_name_the_nearest(tmp_path: Path) -> None:
    child = call_here("bench", "--synthetic", "lama-2-7b", cwd=tmp_path)
    fails(child, 2, "'lama-2-7b'", "nearest is 'llama-2-7b'", "smollm2-135m")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["nothing to measure", "ART or --synthetic"]),
        (["--kernel"], ["nothing to measure", "--shape or --synthetic"]),
        (["--shape", "8x8"], ["add --kernel"]),
        (["--kernel", "--shape", "8"], ["'8'", "4096x11008"]),
        (["--kernel", "--shape", "8x12"], ["'8x12'", "multiple of 8"]),
        (["--kernel", "--shape", "0x8"], ["'0x8'"]),
        (["--kernel", "--shape", "8x8", "--bits", "5"], ["--bits is 5"]),
        (["--synthetic", "llama-2-7b", "--shape", "8x8", "--kernel"], ["got 2 to measure"]),
        (["app", "--target", "x86-64"], ["its own target"]),
        (["app", "--prompt-tokens", "0"], ["--prompt-tokens is 0"]),
        (["--synthetic", "llama-2-7b", "--prompt-tokens", "5000"], ["5065", "4096 positions"]),
        (["ART", "--activations", "float32"], ["--activations is for single operators", "--kernel"]),
        (["ART", "--scales", "row-group"], ["--scales is for single operators", "--kernel"]),
        (["ART", "--cache", "int8"], ["--cache is for made-up models", "compile"]),
    ],
)
def test_usage(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    fails(call_here("bench", *arguments, cwd=tmp_path), 2, *words)


def test_more_tokens_than_the_context(tiny: Tiny, tmp_path: Path) -> None:
    child = call("bench", tiny.artifact, "--prompt-tokens", 400)
    fails(child, 2, "465 tokens", "is 320", "--context")


def test_single_operators_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda module: False)
    wanted = kernels.Request(
        [(48, 64)], 2, "x86-64", baselines=True, probe_bytes=1 << 22, cold_bytes=50_000
    )
    fields = kernels.measure(wanted)
    (kernel,) = fields["kernels"]
    assert kernel["shape"] == [48, 64]
    seconds = kernel["microseconds"] / 1e6
    assert kernel["bytes_per_second"] == pytest.approx(kernel["weight_bytes"] / seconds)
    share = kernel["bytes_per_second"] / kernel["dram_bandwidth_bytes_per_second"]
    assert kernel["bandwidth_fraction"] == pytest.approx(share)
    assert set(kernel["baselines"]) == {peer.name for peer in peers.kernels(2)}
    assert "48 x 64, 2 bits" in tables.kernels(fields)


def test_shapes() -> None:
    assert kernels.parse_shapes("4096x4096, 11008X4096,8×16") == [
        (4096, 4096),
        (11008, 4096),
        (8, 16),
    ]
    assert shapes.linear_shapes("opt-125m") == [(768, 768), (3072, 768), (768, 3072)]
    smallest = families.read_config(shapes.config("opt-350m"))
    assert smallest.width == 512 and not smallest.final_norm  # narrow, normalized after the sums
    assert shapes.linear_shapes("llama-3-8b") == [
        (4096, 4096),
        (1024, 4096),
        (14336, 4096),
        (4096, 14336),
    ]
    with pytest.raises(UsageError, match="opt-66b"):
        shapes.linear_shapes("opt-66")


def test_statistics(tmp_path: Path) -> None:
    assert statistics.spread([1.0]) == 0
    assert statistics.spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)
    assert statistics.notes(0.01, 0.0, 2) == []
    assert [len(statistics.notes(0.5, 1.5, threads)) for threads in (1, 2)] == [2, 3]
    rates = {"even": [3.0, 3.0, 3.0], "peaks": [1.0, 2.0, 9.0]}
    assert memory.roof(rates) == [3.0, 3.0, 3.0]
    for index, size in enumerate(("48K", "32M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert memory.last_cache(tmp_path) == 32 << 20
    assert memory.last_cache(tmp_path / "nothing") == 0


def test_a_dead_contender_says_its_last_words() -> None:
    with pytest.raises(ContenderError, match="No module named 'shiftadd_tvm.nobody'|nobody"):
        Contender("nobody", {"threads": 1})


def test_interrupted(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = ["bench", tiny.artifact, "--new-tokens", 100, "--baselines", "--threads", 1]
    # its first words: a fast machine may end before the next ones are due
    code, output = interrupt(arguments, "measuring")
    assert code == 130 and "nothing was kept" in output and "Traceback" not in output
    assert not list(tmp_path.glob("shiftadd-*"))
