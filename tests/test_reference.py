"""Block by block equals plain transformers; perplexity by its protocol."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import save_tiny

from shiftadd_tvm import evaluation, reference
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.reference import ReferenceModel

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_scaling": LLAMA3},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "a head size of its own": {"head_dim": 10, "num_key_value_heads": 4},
}


def plain(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def draw_ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 259, shape)


@pytest.mark.parametrize("variant", VARIANTS)
def test_block_by_block_is_plain_transformers(tmp_path: Path, variant: str) -> None:
    folder = save_tiny(tmp_path / "tiny", **VARIANTS[variant])
    ids = draw_ids(3, 50)
    with torch.inference_mode():
        expected = plain(folder)(torch.from_numpy(ids)).logits
    model = ReferenceModel(open_checkpoint(folder))
    hidden = model.hidden(ids)
    found = torch.stack([model.logits(rows) for rows in hidden])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(weight.is_meta for weight in model.model.model.layers.parameters())


def test_greedy_is_plain_transformers(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", eos_token_id=None)
    ids = draw_ids(2, 7)
    expected = plain(folder).generate(torch.from_numpy(ids), max_new_tokens=9, do_sample=False)
    model = ReferenceModel(open_checkpoint(folder), keep=True)
    tokens, margins = model.greedy(ids, 9)
    np.testing.assert_array_equal(tokens, expected[:, 7:].numpy())
    assert margins.shape == tokens.shape and (margins >= 0).all()
    assert not any(weight.is_meta for weight in model.model.model.layers.parameters())


def test_batches_do_not_change_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ReferenceModel(open_checkpoint(save_tiny(tmp_path / "tiny")))
    windows = draw_ids(5, 20)
    whole = list(model.score(windows))
    monkeypatch.setattr(reference, "_BLOCK_TOKENS", 40)
    monkeypatch.setattr(reference, "_BATCH_TOKENS", 60)
    monkeypatch.setattr(reference, "_HEAD_ROWS", 6)
    np.testing.assert_allclose(list(model.score(windows)), whole, rtol=1e-6)


def test_perplexity_is_the_mean_over_all_scored_tokens(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    ids, losses = draw_ids(47), []
    model = plain(folder)
    for start in (0, 15, 30):
        window = torch.from_numpy(np.concatenate([[1], ids[start : start + 15]]))[None]
        with torch.inference_mode():
            losses.append(model(window, labels=window).loss.item())
    seen: list[tuple[int, int]] = []
    source = open_checkpoint(folder)
    found = reference.perplexity(source, ids, 16, 1, progress=lambda *a: seen.append(a))
    assert (found.windows, found.tokens) == (3, 45)
    assert found.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    # the same through the callable that other backends give
    reference_model = ReferenceModel(source)

    def score(window: np.ndarray) -> np.ndarray:
        logits = reference_model.logits(reference_model.hidden(window[None])[0]).numpy()
        return evaluation.log_probabilities(logits[:-1], window[1:])

    cut = evaluation.windows(ids, 16, 1, max_windows=2)
    again = evaluation.summarize(map(score, cut), len(cut))
    assert again.windows == 2
    assert again.perplexity == pytest.approx(np.exp(np.mean(losses[:2])), rel=1e-5)


def test_windows() -> None:
    ids = np.arange(100, 110)
    np.testing.assert_array_equal(
        evaluation.windows(ids, 4), [[100, 101, 102, 103], [104, 105, 106, 107]]
    )
    np.testing.assert_array_equal(evaluation.windows(ids, 6, 1, 1), [[1, 100, 101, 102, 103, 104]])
    with pytest.raises(UsageError, match="The text has 10 tokens, expected at least 12"):
        evaluation.windows(ids, 12)
    with pytest.raises(UsageError, match="A window of 1 tokens"):
        evaluation.windows(ids, 1)


def test_log_probabilities_of_extreme_logits() -> None:
    logits = np.array([[0, 0, 0, 0], [3e38, -3e38, 0, 0], [-1e30, -1e30, -1e30, -1e30]], np.float32)
    found = evaluation.log_probabilities(logits, np.array([2, 0, 3]))
    np.testing.assert_allclose(found, [-np.log(4), 0, -np.log(4)], atol=1e-12)
