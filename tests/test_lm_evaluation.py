"""lm-evaluation-harness over an artifact: three local tasks, scored against the engine itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tiny

from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.evaluation import log_probabilities
from shiftadd_tvm.lm_evaluation import ShiftAddLM
from shiftadd_tvm.runtime.engine import Sampling
from shiftadd_tvm.runtime.generation import TextModel

DOCUMENTS = [
    {"question": "The sky is", "choices": ["blue", "a very long answer"], "answer": 0},
    {"question": "Two and two make", "choices": ["five", "four"], "answer": 1},
    {"question": "", "choices": ["yes", "no"], "answer": 1},
]
TEXTS = [{"text": "Once upon a time there was a clockmaker."}, {"text": "long " * 120}]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
"""
CHOICES = """
task: tiny_choices
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
ROLLING = """
task: tiny_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
"""
UNTIL = """
task: tiny_until
output_type: generate_until
doc_to_text: "{{question}}:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["e", "\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> ShiftAddLM:
    return ShiftAddLM(tiny.artifact, threads=1, batch_size=1)


@pytest.fixture(scope="module")
def results(model: ShiftAddLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the harness finds in the three tasks, with the samples."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("choices", DOCUMENTS), ("texts", TEXTS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    for name, task, file in (
        ("choices", CHOICES, "choices"),
        ("text", ROLLING, "texts"),
        ("until", UNTIL, "choices"),
    ):
        common = COMMON.format(file=folder / f"{file}.jsonl")
        (folder / f"{name}.yaml").write_text(task + common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HOME", str(folder / "hub"))
        import datasets
        import lm_eval
        from lm_eval.tasks import TaskManager

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        return lm_eval.simple_evaluate(
            model=model,
            tasks=["tiny_choices", "tiny_text", "tiny_until"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
        )


def log_probability(tiny: Tiny, ids: list[int], scored: int) -> tuple[float, bool]:
    """Score the last tokens one at a time, by the kernels of decoding."""
    engine = TextModel(tiny.artifact, threads=1).engine
    session = engine.session()
    logits = session.prefill(ids[:-scored])
    total, greedy = 0.0, True
    for token in ids[-scored:]:
        total += float(log_probabilities(logits, np.array([token]))[0])
        greedy = greedy and int(logits.argmax()) == token
        logits = session.decode(token)
    return total, greedy


def test_choices(results: dict[str, Any], tiny: Tiny, model: ShiftAddLM) -> None:
    right = []
    for sample, document in zip(results["samples"]["tiny_choices"], DOCUMENTS, strict=True):
        scores = []
        for response, choice in zip(sample["filtered_resps"], document["choices"], strict=True):
            context = model.tok_encode(str(document["question"])) or [model.prefix_token_id]
            # no choice shares a token with its context: tokens are bytes
            ids = context + model.tok_encode(f" {choice}", add_special_tokens=False)
            expected = log_probability(tiny, ids, len(ids) - len(context))
            assert float(response[0]) == pytest.approx(expected[0], abs=0.02)
            assert str(response[1]) == str(expected[1])
            scores.append(expected[0])
        right.append(int(np.argmax(scores)) == document["answer"])
    assert results["results"]["tiny_choices"]["acc,none"] == pytest.approx(np.mean(right))


def test_rolling_covers_every_token_once(results: dict[str, Any], tiny: Tiny) -> None:
    engine = TextModel(tiny.artifact, threads=1)
    context = engine.engine.context
    for sample, row in zip(results["samples"]["tiny_text"], TEXTS, strict=True):
        ids = engine.encode(row["text"], bos=False)
        prefix = engine.tokenizer.bos or engine.tokenizer.token("</s>")
        expected, done = 0.0, 0
        while done < len(ids):
            window = ids[done : done + context] if not done else ids[-context - 1 :]
            new = len(window) if not done else len(ids) - done
            whole = [prefix, *window] if not done else window
            session = engine.engine.session()
            logits = session.logits_of(whole[:-1])[-new:]
            session.close()
            expected += float(log_probabilities(logits, np.array(whole[-new:])).sum())
            done += new
        found = sample["filtered_resps"][0]
        assert float(found if isinstance(found, float) else found[0]) == pytest.approx(
            expected, abs=0.05
        )
    assert len(engine.encode(TEXTS[1]["text"], bos=False)) > context  # in two windows


def test_generation_ends_before_a_stop(results: dict[str, Any], tiny: Tiny) -> None:
    engine = TextModel(tiny.artifact, threads=1)
    for sample, document in zip(results["samples"]["tiny_until"], DOCUMENTS, strict=True):
        expected = "".join(
            engine.generate(f"{document['question']}:", 12, Sampling(), ["e", "\n\n"])
        )
        assert sample["resps"][0][0] == expected


def test_a_shared_beginning_changes_nothing(model: ShiftAddLM) -> None:
    context, one, other = list(range(60, 90)), [70, 71], [80]
    first = model._score(context, one)
    again = model._score(context, other)
    model._session.close()
    assert model._score(context, other) == pytest.approx(again, abs=1e-3)
    assert model._score(context, one) == pytest.approx(first, abs=1e-3)


def test_bos_once(model: ShiftAddLM) -> None:
    assert model.tok_encode("<s>ab")[0] == 1 and model.tok_encode("<s>ab")[1] != 1


def test_more_than_the_context_is_refused_or_cut(model: ShiftAddLM) -> None:
    long = [60] * (model.max_length + 1)
    with pytest.raises(UsageError, match="--context"):
        model._score([60], long)
    cut = model._score(long, [70])
    assert cut == pytest.approx(model._score([60] * model.max_length, [70]), abs=1e-3)
    with pytest.raises(UsageError, match="max_gen_toks"):
        model._generate("a", {"max_gen_toks": model.max_length, "do_sample": False, "until": []})


def test_the_harness_knows_the_model(tiny: Tiny) -> None:
    from lm_eval.api.registry import get_model

    made = get_model("shiftadd").create_from_arg_string(f"artifact={tiny.artifact},threads=1")
    assert made.max_length == 320 and Path(made.tokenizer_name) == tiny.artifact
    assert made.apply_chat_template([{"role": "user", "content": "hi"}]).endswith("<assistant>")
