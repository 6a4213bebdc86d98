"""What calibration measures, against the plain model run whole; and the texts that it takes."""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import save_tiny

from shiftadd_tvm import calibration_text, dataset_text, families, golden, reference
from shiftadd_tvm.calibration import Calibration
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.runtime.text import Tokenizer


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with reference.one_thread():  # of tiny operators: more only wait for each other
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(save_tiny(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path).eval()


def windows(count: int = 5, length: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 259, (count, length)).astype(np.int64)


def test_moments_and_states_are_those_of_the_whole_model(
    checkpoint: Checkpoint, model: transformers.PreTrainedModel
) -> None:
    ids = windows()
    decoder = families.read_config(checkpoint.config)
    seen: dict[str, torch.Tensor] = {}
    leaders = [group[0] for group in decoder.input_groups()]
    for path in leaders:
        hook = lambda module, inputs, path=path: seen.__setitem__(path, inputs[0])
        model.get_submodule(path).register_forward_pre_hook(hook)
    with torch.no_grad():
        states = model.base_model(torch.from_numpy(ids)).last_hidden_state
    walk = Calibration(checkpoint, ids)
    for block in decoder.blocks():
        for path, moment in walk.run(block).items():
            x = seen.pop(path).reshape(-1, moment.shape[0]).double()
            torch.testing.assert_close(moment.double(), x.T @ x / ids.size, rtol=1e-4, atol=1e-5)
    assert not seen
    torch.testing.assert_close(walk.finish(), states, rtol=1e-4, atol=1e-4)


def test_text_is_cut_into_windows_of_its_own_tokens(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = "a stone, a note, another notion; " * 200
    data = calibration_text.from_text(checkpoint, text, 1024, seed=1)
    again = calibration_text.from_text(checkpoint, text, 1024, seed=1)
    assert data.windows.shape == (4, 256) and np.array_equal(data.windows, again.windows)
    assert data.description["tokens"] == 1024 and len(str(data.description["sha256"])) == 64
    short = calibration_text.from_text(checkpoint, "a stone", 1024, seed=1)
    assert 2 <= short.windows.size < 16


def test_model_writes_its_own_text(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_tiny(tmp_path / "tiny"))
    checkpoint.config["max_position_embeddings"] = 32  # a window is as long
    data = calibration_text.written_by(checkpoint, 80, seed=3)
    assert data.windows.shape == (2, 32)
    assert np.array_equal(data.windows, calibration_text.written_by(checkpoint, 80, 3).windows)
    assert not np.array_equal(data.windows, calibration_text.written_by(checkpoint, 80, 4).windows)
    assert data.windows.min() >= 0 and data.windows.max() < 259


@pytest.mark.parametrize("begins", [True, False])
def test_windows_begin_as_texts_do(tmp_path: Path, begins: bool) -> None:
    path = save_tiny(tmp_path / "tiny", max_position_embeddings=32)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": begins}))
    checkpoint = open_checkpoint(path)
    bos = Tokenizer(checkpoint.tokenizer_files().get, path).bos
    assert (bos is not None) == begins
    text = "a stone, a note, another notion; " * 20
    for data in (
        calibration_text.from_text(checkpoint, text, 128, seed=1),
        calibration_text.written_by(checkpoint, 128, seed=1),
    ):
        assert data.windows.shape == (4, 32) and data.description["tokens"] == 128
        assert (data.windows[:, 0] == bos).all() == begins
    prompts = golden.prompt_ids(checkpoint.tokenizer_files(), 259)
    assert prompts.shape == (4, 16) and (prompts[:, 0] == bos).all() == begins


def test_json_lines_give_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": 3}\n')
    assert calibration_text.read_text(path) == "one\n\ntwo"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("text.jsonl", b'{"text": "one"}\n{"words": 3}\n', "line 2: expected a JSON object"),
        ("text.jsonl", b"[1]\n", "line 1"),
        ("text.jsonl", b'{"text": 1}\n', "line 1"),
        ("text.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("nothing.txt", None, "No such file"),
    ],
)
def test_bad_text_is_refused(
    tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFileError, match=sentence):
        calibration_text.read_text(tmp_path / name)


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Stand in for `datasets` with two data sets; return what was asked of it."""
    rows = {"owner/notes": [{"text": "one"}, {"text": "two"}], "words": [{"word": "one"}]}
    asked: list[tuple[object, ...]] = []

    def load_dataset(path: str, config: str | None, **options: object) -> list[dict[str, str]]:
        asked.append((path, config, options))
        return rows[path]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    dataset_text.read.cache_clear()
    return asked


def test_a_data_set_gives_its_first_texts(
    hub: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibration_text.read_text(Path("owner/notes:plain")) == "one\n\ntwo"
    assert hub == [("owner/notes", "plain", {"split": "train", "streaming": True})]
    dataset_text.read.cache_clear()
    monkeypatch.setattr(dataset_text, "_ENOUGH", 3)
    assert calibration_text.read_text(Path("owner/notes")) == "one"


def test_a_data_set_that_cannot_be_used_is_refused(
    hub: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"columns \['word'\], expected texts"):
        calibration_text.read_text(Path("words"))
    with pytest.raises(BadFileError, match="^nobody/nothing is not a file, and as a data set"):
        calibration_text.read_text(Path("nobody/nothing"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"install shiftadd-tvm\[datasets\]"):
        calibration_text.read_text(Path("owner/others"))


@pytest.mark.parametrize("name", ["a/b/c", "text.txt", "rows.jsonl", "../text/one", "a b", ""])
def test_what_no_data_set_is_called(name: str) -> None:
    assert not dataset_text.is_name(name)


def test_text_and_own_text_are_mixed(checkpoint: Checkpoint) -> None:
    long = "a stone and another stone " * 400
    text = calibration_text.from_text(checkpoint, long, 2048, seed=1)
    own = calibration_text.written_by(checkpoint, 1024, seed=1)
    both = calibration_text.mixed(text, own, seed=1)
    rows = lambda data: sorted(map(tuple, data.windows.tolist()))
    assert rows(both) == sorted([*rows(text), *rows(own)])
    assert both.windows.tolist() != np.concatenate([text.windows, own.windows]).tolist()
    counts = {"tokens": text.windows.size + own.windows.size, "own_tokens": own.windows.size}
    assert both.description == {**text.description, **counts}
    short = calibration_text.from_text(checkpoint, "a stone", 1024, seed=1)
    with pytest.raises(UsageError, match="to be mixed with the model's own"):
        calibration_text.mixed(short, own, seed=1)


def test_empty_text_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="fewer than two tokens"):
        calibration_text.from_text(checkpoint, "", 100, 0)
