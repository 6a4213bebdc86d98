"""Small BPE tokenizers in the layouts of well-known families, trained here on the project's documents."""

import functools
import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = Path(__file__).resolve().parent.parent
SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# o200k's, which GPT-4o and its likes use: cases, marks, contractions behind words
CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLES = [
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ça va très bien, merci!",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. 我能吞下玻璃而不伤身体。",
    "いろはにほへと ちりぬるを 다람쥐 헌 쳇바퀴에 타고파 😀👍🏽 नमस्ते दुनिया, สวัสดี 1234567890",
]


@functools.cache
def corpus() -> list[str]:
    """Return lines of text to train on."""
    lines = [
        line for path in (ROOT / "docs").glob("*.md") for line in path.read_text().splitlines()
    ]
    return [*lines, *SAMPLES * 20]


def _trained(tokenizer: Tokenizer, special: list[str], alphabet: list[str], size: int) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def byte_level(pattern: str | None = None, *, ignore_merges: bool = False) -> Tokenizer:
    """Return GPT-2's layout, or with `pattern` Llama 3's."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is None:
        tokenizer.pre_tokenizer = plain
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    _trained(tokenizer, special, sorted(pre_tokenizers.ByteLevel.alphabet()), 1200)
    if pattern is not None:
        template = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer


def sentencepiece(kind: str) -> Tokenizer:
    """Return Llama 2's layout ("legacy" or "metaspace": the older and the newer one), or "gemma"'s."""
    special = (
        ["<unk>", "<s>", "</s>", *BYTES]
        if kind != "gemma"
        else ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES]
    )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")  # to train
    _trained(tokenizer, special, [SPACE], 1100)
    tokenizer = _without_bytes_as_added(tokenizer)
    replace = decoders.Replace(SPACE, " ")
    steps = [replace, decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.decoder = decoders.Sequence(steps)
    else:
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    if kind == "legacy":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
        tokenizer.pre_tokenizer = None
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            SPACE, prepend_scheme="first", split=False
        )
    bos = "<bos>" if kind == "gemma" else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    return tokenizer


def _without_bytes_as_added(tokenizer: Tokenizer) -> Tokenizer:
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [t for t in fields["added_tokens"] if t["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(fields))


def flagged() -> Tokenizer:
    """Return a layout with what the others lack: NFKC, digits, other splits, flags of added tokens."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(r"[\p{P}\p{S}$]++|(?>\s\s)(?=\p{Lu})"), "contiguous"),
            pre_tokenizers.Split("th", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"\n|^--|;$"), "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=True),
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("<alone>", single_word=True, normalized=False),
            AddedToken("ﬁne", normalized=True),  # NFKC writes it "fine"
            AddedToken("  ", normalized=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<both>", lstrip=True, rstrip=True, special=True)])
    return tokenizer


LAYOUTS = {
    "byte-level": byte_level,
    "llama3": functools.partial(byte_level, LLAMA3, ignore_merges=True),
    "cases": functools.partial(byte_level, CASES),
    "llama2": functools.partial(sentencepiece, "legacy"),
    "metaspace": functools.partial(sentencepiece, "metaspace"),
    "gemma": functools.partial(sentencepiece, "gemma"),
    "flagged": flagged,
}


@functools.cache
def layout(name: str) -> str:
    """Return the tokenizer.json of a layout."""
    return str(LAYOUTS[name]().to_str())
