"""One linear coded alone: its measured divergence is the whole model's, and ranks what was expected."""

from pathlib import Path

import numpy as np
import pytest
import torch
from models import save_tiny

from shiftadd_tvm.accuracy import sensitivity
from shiftadd_tvm.accuracy.sensitivity import AloneCoded
from shiftadd_tvm.calibrated import Calibrated
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.families import read_config
from shiftadd_tvm.reference import ReferenceModel, one_thread
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.statistics_store import StatisticsStore

WINDOWS = np.random.default_rng(1).integers(0, 259, (2, 32)).astype(np.int64)
LINEAR = "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    return open_checkpoint(save_tiny(folder, max_position_embeddings=32))


def test_an_unchanged_linear_changes_nothing(checkpoint: Checkpoint) -> None:
    weights = torch.from_numpy(checkpoint.read(f"{LINEAR}.weight"))
    assert abs(AloneCoded(checkpoint, WINDOWS).divergence(LINEAR, weights)) < 1e-6


def test_the_divergence_is_that_of_the_whole_changed_model(checkpoint: Checkpoint) -> None:
    class Changed:
        config = checkpoint.config

        def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
            rows = checkpoint.read_rows(name, start, stop)
            return -3 * rows if name == f"{LINEAR}.weight" else rows

    found = AloneCoded(checkpoint, WINDOWS).divergence(
        LINEAR, torch.from_numpy(-3 * checkpoint.read(f"{LINEAR}.weight"))
    )
    true, changed = ReferenceModel(checkpoint), ReferenceModel(Changed())
    p = true.logits(true.hidden(WINDOWS).flatten(0, 1)).log_softmax(1)
    q = changed.logits(changed.hidden(WINDOWS).flatten(0, 1)).log_softmax(1)
    assert found == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3)
    assert found > 1e-6


def test_every_linear_has_an_expected_and_a_measured_loss(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    settings = QuantizeSettings(bits=1.5, method="shiftadd", calibration_tokens=96, effort="fast")
    decoder, store = read_config(checkpoint.config), StatisticsStore(tmp_path / "store")
    run = Calibrated(checkpoint, decoder, settings, store, lambda *_: None)
    with one_thread():
        run.measure()
        groups = decoder.input_groups()[-4:]
        rows = list(
            sensitivity.pairs(checkpoint, run, settings, 1, WINDOWS, groups, lambda _: None)
        )
    assert [name for name, _, _ in rows] == [name for group in groups for name in group]
    assert set(run.known_costs()) == {name for name, _, _ in rows}
    assert all(expected > 0 and measured > 0 for _, expected, measured in rows)


def test_rank_correlation_is_kendalls() -> None:
    assert sensitivity.rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
