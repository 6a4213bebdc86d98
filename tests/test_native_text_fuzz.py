"""libFuzzer on the text part of libshiftadd, with sanitizers for addresses and undefined behaviour."""

import concurrent.futures
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizer_layouts import LAYOUTS, layout

from shiftadd_tvm.runtime import native_build

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "tests" / "fuzz_tokenizer.cpp"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
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


def build(folder: Path) -> Path:
    """Return the fuzzer, built with the library inside."""
    parts = native_build.SOURCES
    units = [*(parts / "text").glob("*.cpp"), parts / "src" / "failure.cpp", TARGET]
    includes = f"-I{native_build.SOURCES / 'include'}"
    common = ["clang++", "-std=c++17", "-O1", "-g1", *SANITIZE]

    def compile_one(unit: Path) -> str:
        made = folder / f"{unit.stem}.o"
        command = [*common, "-fsanitize=fuzzer-no-link", includes, "-c", str(unit), "-o", str(made)]
        subprocess.run(command, check=True)
        return str(made)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, units))
    subprocess.run(
        [*common, "-fsanitize=fuzzer", *objects, "-o", str(folder / "fuzzer")], check=True
    )
    return folder / "fuzzer"


@pytest.mark.skipif(
    shutil.which("clang++") is None, reason="clang (with libFuzzer) is not installed"
)
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
    run = subprocess.run(
        [build(tmp_path), *limits, corpus],
        cwd=tmp_path,
        env={**os.environ, "SHIFTADD_FUZZ_TOKENIZER": str(good)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert f"Done {RUNS} runs" in run.stderr
