"""Write unicode_data.inc: the Unicode tables of libshiftadd, asked of the `tokenizers` library.

    python shiftadd_tvm/runtime/cpp/text/make_unicode_data.py

What counts is to equal `tokenizers`, and its parts know different versions of Unicode: its regular
expressions 16, its normalization 9. So each property is probed rather than taken from Python's
`unicodedata`, which only proposes what to ask (its own version must be 14 or newer).

    kRuns            runs of equal properties: first code point << 8 | properties
    kDecompositions  code point, place and length of its NFD and of its NFKD in kPool, where they differ
    kCompositions    two code points and what NFC makes of them
    kCombining       runs of equal combining classes: first code point << 8 | class
"""

import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CATEGORIES = (
    *(
        "Lu",
        "Ll",
        "Lt",
        "Lm",
        "Lo",
        "Mn",
        "Mc",
        "Me",
        "Nd",
        "Nl",
        "No",
        "Pc",
        "Pd",
        "Ps",
        "Pe",
        "Pi",
    ),
    *("Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"),
)
WORD, NUMERIC, SPACE = 1 << 5, 1 << 6, 1 << 7  # properties beside the category
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic


def members(pattern: str, text: str) -> set[int]:
    """Return the code points of `text` that the regular expression `pattern` finds."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {ord(letter) for piece, _ in split.pre_tokenize_str(text) for letter in piece}


def numeric(text: str) -> set[int]:
    """Return the code points that the pre-tokenizer Digits sets apart."""
    pieces = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str("a".join(text))
    return {ord(piece) for piece, _ in pieces if len(piece) == 1 and piece != "a"}


def words(codes: Iterable[int]) -> set[int]:
    """Return the code points that are part of a word beside an added token of `single_word`."""
    tokenizer = Tokenizer(models.BPE({}, []))
    tokenizer.add_tokens([AddedToken("~~~~", single_word=True, normalized=False)])
    codes = [code for code in codes if code != ord("~")]
    encoded = tokenizer.encode_batch([f"~~~~{chr(code)}" for code in codes])
    return {code for code, found in zip(codes, encoded, strict=True) if not found.ids}


def properties() -> list[int]:
    """Return the byte of properties of every code point."""
    text = "".join(map(chr, CODES))
    table = [CATEGORIES.index("Cs")] * 0x110000
    for index, category in enumerate(CATEGORIES):
        for code in members(rf"\p{{{category}}}+", text) if category != "Cs" else ():
            table[code] = index
    # Rust knows more code points than the regular expressions do, but none beyond the ideographs
    probed = [code for code in CODES if code < 0x40000 or table[code] != CATEGORIES.index("Cn")]
    for found, flag in (
        (words(probed), WORD),
        (numeric("".join(map(chr, probed))), NUMERIC),
        (members(r"\s+", text), SPACE),
    ):
        for code in found:
            table[code] |= flag
    return table


def combining_class(code: int, nfd: Callable[[str], str]) -> int:
    """Return the combining class by which `nfd` sorts `code`: unicodedata's, or 0 if it is unknown."""
    letter = chr(code)
    # every known class sorts before U+0345 (240), or else behind U+0334 (1)
    pairs = (f"a\u0345{letter}", f"a{letter}\u0334")
    moves = any(nfd(pair) == f"a{pair[2]}{pair[1]}" for pair in pairs)
    return unicodedata.combining(letter) if moves else 0


def runs(values: list[int]) -> list[int]:
    """Return first code point << 8 | value for each run of equal values."""
    starts = [0, *(code for code in range(1, len(values)) if values[code] != values[code - 1])]
    return [start << 8 | values[start] for start in starts]


def decompositions() -> tuple[list[tuple[int, int, int, int, int]], list[int]]:
    """Return the rows of kDecompositions and kPool."""
    nfd, nfkd = normalizers.NFD().normalize_str, normalizers.NFKD().normalize_str
    pool: list[int] = []
    places: dict[str, int] = {}
    rows = []
    for code in CODES:
        letter = chr(code)
        if code in HANGUL or nfkd(letter) == letter:
            continue
        row = [code]
        for text in (nfd(letter), nfkd(letter)):
            if text not in places:
                places[text] = len(pool)
                pool.extend(map(ord, text))
            row += [places[text], len(text)]
        rows.append((row[0], row[1], row[2], row[3], row[4]))
    return rows, pool


def compositions() -> list[tuple[int, int, int]]:
    """Return the pairs that NFC composes, sorted."""
    nfc = normalizers.NFC().normalize_str
    rows = []
    for code in CODES:
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            pair = "".join(chr(int(part, 16)) for part in parts)
            if nfc(pair) == chr(code):
                rows.append((ord(pair[0]), ord(pair[1]), code))
    return sorted(rows)


def array(name: str, kind: str, items: Iterable[str]) -> str:
    """Return a C++ array, wrapped at 104 columns."""
    lines, line = [], " "
    for item in items:
        if len(line) + len(item) + 2 > 104:
            lines.append(line)
            line = " "
        line += f" {item},"
    return "\n".join([f"constexpr {kind} {name}[] = {{", *lines, line, "};", ""])


def main() -> None:
    """Write the tables beside this file."""
    nfd = normalizers.NFD().normalize_str
    classes = [0] * 0x110000
    for code in CODES:
        if unicodedata.combining(chr(code)):
            classes[code] = combining_class(code, nfd)
    rows, pool = decompositions()
    text = "\n".join(
        [
            f"// Written by make_unicode_data.py with tokenizers {tokenizers.__version__}; do not edit.",
            array("kRuns", "uint32_t", (f"{run:#x}" for run in runs(properties()))),
            array("kCombining", "uint32_t", (f"{run:#x}" for run in runs(classes))),
            array(
                "kDecompositions",
                "Decomposition",
                (f"{{{code:#x}, {a}, {b}, {c}, {d}}}" for code, a, b, c, d in rows),
            ),
            array("kPool", "uint32_t", (f"{code:#x}" for code in pool)),
            array(
                "kCompositions",
                "Composition",
                (f"{{{a:#x}, {b:#x}, {code:#x}}}" for a, b, code in compositions()),
            ),
        ]
    )
    (Path(__file__).parent / "unicode_data.inc").write_text(text)


if __name__ == "__main__":
    main()
