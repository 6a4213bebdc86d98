"""Turn the Wikipedia dump inside the gensim wheel into plain text for evaluation and calibration.

Every third article goes to the test text, the others to the calibration text. The cleaning rules
are frozen: reported perplexities are compared across versions, so every byte of the result counts
(`fetch_data.py` checks its sha256). A second text for evaluation, of another kind, is the wheel's
background corpus of M. D. Lee: 299 reports of Australian radio news.
"""

import bz2
import html
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

DUMP_MEMBER = (
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
)
NEWS_MEMBER = "gensim/test/test_data/lee_background.cor"  # a report a line
MIN_LINE = 150  # characters; shorter lines are headings, captions and list items
MIN_PARAGRAPHS = 5
LAST_SECTIONS = re.compile(r"References|External links|See also|Further reading|Notes")

# (pattern, replacement, times): in this order; nested markup is removed from the inside out.
MARKUP = (
    (re.compile(r"<!--.*?-->", re.S), "", 1),
    (re.compile(r"<ref[^>/]*/>"), "", 1),
    (re.compile(r"<ref.*?</ref>", re.S), "", 1),
    (re.compile(r"<(math|gallery|timeline|source|code|pre|table)[^>]*>.*?</\1>", re.S), "", 1),
    (re.compile(r"\{\{[^{}]*\}\}"), "", 6),  # templates
    (re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.S), "", 3),  # tables
    (
        re.compile(r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]"),
        "",
        3,
    ),
    (re.compile(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]"), r"\1", 1),  # [[target|words]] -> words
    (re.compile(r"\[https?://\S+ ?([^\]]*)\]"), r"\1", 1),
    (re.compile(r"'{2,}"), "", 1),  # bold and italic
    (re.compile(r"<[^>]+>"), "", 1),
)


def extract_texts(wheel: zipfile.ZipFile, folder: Path) -> None:
    """Write wikipedia_test.txt, wikipedia_calibration.txt and news_test.txt into text/ of `folder`."""
    dump = bz2.decompress(wheel.read(DUMP_MEMBER)).decode("utf-8")
    texts = list(articles(dump))
    (folder / "text").mkdir()
    _write(folder / "text" / "wikipedia_test.txt", texts[0::3])
    _write(
        folder / "text" / "wikipedia_calibration.txt",
        [text for index, text in enumerate(texts) if index % 3],
    )
    _write(folder / "text" / "news_test.txt", wheel.read(NEWS_MEMBER).decode("ascii").splitlines())


def articles(dump: str) -> Iterator[str]:
    """Yield " = Title = " and the paragraphs of each article that is long enough."""
    for page in re.findall(r"<page>.*?</page>", dump, flags=re.S):
        title = re.search(r"<title>(.*?)</title>", page)
        body = re.search(r"<text[^>]*>(.*?)</text>", page, flags=re.S)
        if title is None or body is None or "<redirect" in page or ":" in title[1]:
            continue
        kept = list(paragraphs(strip_markup(html.unescape(body[1]))))
        if len(kept) >= MIN_PARAGRAPHS:
            yield f" = {title[1]} = \n" + "\n".join(kept)


def strip_markup(text: str) -> str:
    """Return the words of a page's wiki markup."""
    text = html.unescape(text)  # a second time: the dump escapes the page's own entities
    for pattern, replacement, times in MARKUP:
        for _ in range(times):
            text = pattern.sub(replacement, text)
    return text


def paragraphs(text: str) -> Iterator[str]:
    """Yield the lines of running text, up to the sections that hold only lists."""
    for line in map(str.strip, text.split("\n")):
        if re.match(r"=+.*=+$", line):
            if LAST_SECTIONS.search(line):
                return
            continue
        if len(line) < MIN_LINE or line[0] in "*#|:;{}!":
            continue
        without_empty = re.sub(r"\(\s*[;,]*\s*\)", "", line)  # "()" where a template was
        yield re.sub(r"\s+", " ", without_empty)


def _write(path: Path, texts: list[str]) -> None:
    path.write_text("\n\n".join(texts), encoding="utf-8", newline="")
