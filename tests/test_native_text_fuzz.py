"""libFuzzer on the text part of libshiftadd, with sanitizers for addresses and undefined behaviour."""

import json
import os
import subprocess
from pathlib import Path

import native_programs
from tokenizer_layouts import LAYOUTS, layout

SANITIZERS = "address,undefined,fuzzer"
RUNS = 1000
SEED = 1
KEPT = 300  # tokens of the tokenizers that are seeds: small files are tried more often
FORM = {
    "version": 1,
    "content": {"edge": {"user": "strip"}, "system": {"user": "strip-end"}},
    "between": {"edge": {"system": "<s>"}, "system": {"user": "\n"}, "user": {"edge": "<a>"}},
}
TEXT = "Hello  w\u00f6rld's 123 \n\n <s>\u65e5\u672c\U0001f642"


def seed(name: str) -> bytes:
    """Return an input: a small tokenizer.json, a form and a text."""
    fields = json.loads(layout(name))
    by_id = sorted(fields["model"]["vocab"].items(), key=lambda item: item[1])
    vocab = dict(by_id[:KEPT])
    merges = fields["model"]["merges"]
    fields["model"] |= {
        "vocab": vocab,
        "merges": [m for m in merges if {*m, "".join(m)} <= set(vocab)],
    }
    fields["added_tokens"] = [t for t in fields["added_tokens"] if t["content"] in vocab]
    parts = (json.dumps(fields, ensure_ascii=False), json.dumps(FORM), TEXT)
    return "\0".join(parts).encode()


def test_no_input_crashes_hangs_or_takes_too_much_memory(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in LAYOUTS:
        (corpus / name).write_bytes(seed(name))
    (corpus / "text").write_bytes(f"\0\0{TEXT}".encode())
    good = tmp_path / "good.json"
    good.write_text(layout("flagged"))
    limits = [
        f"-runs={RUNS}",
        f"-seed={SEED}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-max_len=16384",
    ]
    units = ("failure", "json", "utf8", *native_programs.TEXT)
    built = native_programs.build(tmp_path, {"fuzz_tokenizer": units}, SANITIZERS)
    run = subprocess.run(
        [built["fuzz_tokenizer"], *limits, corpus],
        cwd=tmp_path,
        env={**os.environ, **native_programs.LIMITS, "SHIFTADD_FUZZ_TOKENIZER": str(good)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert f"Done {RUNS} runs" in run.stderr
