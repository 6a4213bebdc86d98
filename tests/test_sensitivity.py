"""One linear coded alone: its measured divergence is the whole model's, and ranks what was expected."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import save_tiny, tiny_tensors, write_checkpoint

from shiftadd_tvm import families
from shiftadd_tvm.accuracy import ranking
from shiftadd_tvm.calibrated import Calibrated
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.families import read_config
from shiftadd_tvm.reference import ReferenceModel, one_thread
from shiftadd_tvm.sensitivity import SKIP, Sensitivity
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.statistics_store import StatisticsStore

WINDOWS = np.random.default_rng(1).integers(0, 259, (2, 32)).astype(np.int64)
LINEAR = "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    return open_checkpoint(save_tiny(folder, max_position_embeddings=32))


Weights = Callable[[str], torch.Tensor]


def losses(checkpoint: Checkpoint, walks: list[list[int]], weights: Weights) -> dict[str, float]:
    """Measure every linear of the blocks of each walk with `weights` in the place of its own."""
    decoder = read_config(checkpoint.config)
    blocks = decoder.blocks()
    coded = lambda block: {
        f"{block}.{n}": weights(f"{block}.{n}") for n in decoder.linear_shapes()
    }
    found, walked = {}, []
    sensitivity = Sensitivity(checkpoint, WINDOWS)
    for walk in walks:
        found |= sensitivity.measure([blocks[i] for i in walk], coded, walked.append)
    assert walked == [block for walk in walks for block in blocks[walk[0] :]]
    return found


def times(checkpoint: Checkpoint, factor: float) -> Weights:
    return lambda name: factor * torch.from_numpy(checkpoint.read(f"{name}.weight"))


def test_unchanged_linears_change_nothing(checkpoint: Checkpoint) -> None:
    found = losses(checkpoint, [[0, 1]], times(checkpoint, 1))
    assert len(found) == 14 and max(map(abs, found.values())) < 1e-6


@pytest.mark.parametrize("walks", [[[0, 1]], [[0], [1]], [[1]]])
def test_the_divergence_is_that_of_the_whole_changed_model(
    checkpoint: Checkpoint, walks: list[list[int]]
) -> None:
    class Changed:
        config = checkpoint.config

        def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
            rows = checkpoint.read_rows(name, start, stop)
            return -3 * rows if name == f"{LINEAR}.weight" else rows

    found = losses(checkpoint, walks, times(checkpoint, -3))[LINEAR]
    true, changed = ReferenceModel(checkpoint), ReferenceModel(Changed())
    compared = [model.hidden(WINDOWS)[:, ::SKIP].flatten(0, 1) for model in (true, changed)]
    p = true.logits(compared[0]).log_softmax(1)
    q = changed.logits(compared[1]).log_softmax(1)
    assert found == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3)
    assert found > 1e-6


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma2"])  # turned, biased, capped
def test_other_families_are_measured(family: str, tmp_path: Path) -> None:
    config = families.load({"model_type": family}).tiny_config()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", config, tiny_tensors(config, 0)))
    blocks = [list(range(len(read_config(config).blocks())))]
    assert max(map(abs, losses(checkpoint, blocks, times(checkpoint, 1)).values())) < 1e-6
    assert min(losses(checkpoint, blocks, times(checkpoint, -1)).values()) > 1e-9


def test_every_linear_has_an_expected_and_a_measured_loss(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    settings = QuantizeSettings(bits=1.5, method="shiftadd", calibration_tokens=96, effort="fast")
    decoder, store = read_config(checkpoint.config), StatisticsStore(tmp_path / "store")
    run = Calibrated(checkpoint, decoder, settings, store, lambda *_: None)
    with one_thread():
        run.measure()
        blocks = decoder.blocks()[-1:]
        rows = list(ranking.pairs(checkpoint, run, settings, 1, WINDOWS, blocks, lambda _: None))
    assert {name for name, _, _ in rows} == {f"{blocks[0]}.{n}" for n in decoder.linear_shapes()}
    assert set(run.known_costs()) == {name for name, _, _ in rows}
    assert all(expected > 0 and measured > 0 for _, expected, measured in rows)


def test_rank_correlation_is_kendalls() -> None:
    assert ranking.rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
