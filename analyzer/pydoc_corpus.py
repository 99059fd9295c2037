"""English prose that every Python ships: the help topics of ``pydoc_data``, as a corpus.

The topics are the language reference as plain text. What is left here are its sentences: without
headings, tables, grammar, code, signatures and fragments of lists, and each sentence once,
although topics share sections. The form is that of the Penn Treebank language modelling text:
lower case, tokens separated by white space, punctuation marks tokens of their own, ``N`` for
every number; besides, ``<code>`` stands for a literal that is not a name or words (``x[i:j]``).

The text depends on the version of Python. It belongs to Python's documentation (PSF licence).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping

from .errors import CorpusError

_BULLET = re.compile(r"(?:[*•-]|\d+\.|\(\d+\)|\[\d+\])\s+(?=\S)")
_NOT_PROSE = re.compile(
    r"""^(?:>>>|\.\.\.\s|[+|]) | ::= | ^\s*[-=*~^]{3,}\s*$ | ^\s*\#""", re.VERBOSE | re.MULTILINE
)
# What stands before a remark: "Changed in version 3.8:", "**CPython implementation detail:**".
_LEAD = re.compile(
    r"(?:Changed|New|Deprecated)(?: since| in) version [\d.]+:\s+|\*\*[^*]+:\*\*\s+|\*\s+"
)
_SENTENCE_END = re.compile(
    r"""(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)(?<!etc\.)(?<!\.\.)
        (?<=[.?!:])(?P<close>[)”]?)\s+(?=[“("*]{0,2}[A-Z"])""",
    re.VERBOSE,
)
_LITERAL = re.compile(r'(?<![\w"])"(\S|\S.*?\S)"(?![\w"])')
_WORDS = re.compile(r"[a-z]+(?: [a-z]+)*|[A-Za-z_][\w.]*")
_EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(\w(?:[^*]*[\w)])?)\1(?![\w*])")
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": " -- ", "–": "-"})
_TOKEN = re.compile(
    r"""<code> | N(?![\w-])
      | (?:e\.g|i\.e|etc|vs|cf)\.           # abbreviations keep their dot
      | '(?:s|re|ve|ll|d|m)\b               # clitics are tokens, as in the treebank ...
      | n't\b
      | \w+?(?=n't\b)                       # ... and so is what they lean on
      | \w+(?:[.-]\w+)*                     # words, dotted names, compounds
      | \.\.\. | -- | \S""",
    re.VERBOSE,
)
# A sentence holds one of these; a line of code that looks like one seldom does.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been by can for from has have if in is it may must no not of on or "
        "see so than that the then there these this to was when which will with",
    )
)
# Marks that prose does without: what is left of a literal that could not be told from its text.
_LEFT_OF_CODE = frozenset("{}[]<>\\=|^*/_@#$&~`%+")


def lines(topics: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the sentences of pydoc's help topics, tokens separated by one space.

    Args:
        topics: Name to text; None takes those of the running Python. They are read in the order
            of their names.

    Raises:
        CorpusError: This Python came without ``pydoc_data``.
    """
    if topics is None:
        try:
            from pydoc_data.topics import topics  # type: ignore[attr-defined,unused-ignore]
        except ImportError as error:
            raise CorpusError(
                "This Python came without its help texts (the module pydoc_data.topics); "
                "install the full standard library or give another corpus."
            ) from error
    seen: set[str] = set()
    assert topics is not None
    for name in sorted(topics):
        for paragraph in _paragraphs(topics[name]):
            for sentence in _SENTENCE_END.sub(r"\g<close>\n", paragraph).split("\n"):
                tokens = _tokens(sentence)
                line = " ".join(tokens)
                if _is_sentence(sentence, tokens) and line not in seen:
                    seen.add(line)
                    yield line


def _paragraphs(text: str) -> Iterator[str]:
    """Each paragraph that may be prose, on one line, without bullet or version note."""
    for block in re.split(r"\n\s*\n", text):
        # A table or grammar is told by its line beginnings, so look before joining lines.
        block = textwrap.dedent(block.strip("\n"))
        if _NOT_PROSE.search(block):
            continue
        # Each bullet begins a paragraph; so does the body below the term that it defines.
        for item in re.split(r"\n(?=(?:[*•]|\d+\.)\s)", block):
            item = item.strip()
            bullet = _BULLET.match(item)
            if bullet:
                item = item[bullet.end() :]
            elif re.match(r"\S[^\n]*\n {2,}\S", item):
                item = item.partition("\n")[2]
            joined = re.sub(r"\s+", " ", item).strip()
            joined = re.sub(r" \[\d+\]", "", joined)  # footnote marks
            yield re.sub(rf"^(?:{_LEAD.pattern})", "", joined)


def _tokens(sentence: str) -> list[str]:
    """Split a sentence into lower-case tokens, markup removed."""
    text = _LITERAL.sub(lambda m: _literal(m[1]), sentence)
    text = _EMPHASIS.sub(r"\2", text).translate(_TYPOGRAPHY).lower()
    text = re.sub(r"(?<![\w.])\d+(?:[.,]\d+)*(?![\w])", "N", text.replace("…", " ... "))
    return _TOKEN.findall(text)


def _literal(text: str) -> str:
    """Put a literal as it goes into the sentence: names and words stay, other code does not."""
    text = text.removesuffix("()")
    return text if _WORDS.fullmatch(text) else "<code>"


def _is_sentence(raw: str, tokens: list[str]) -> bool:
    if "://" in raw or tokens.count('"') % 2 or not _LEFT_OF_CODE.isdisjoint(tokens):
        return False
    words = [t for t in tokens if t[0].isalpha()]
    return (
        len(tokens) >= 4
        and raw.lstrip('“("*')[:1].isupper() | raw.startswith('"')
        and tokens[-1] in {".", "?", "!", ":"} | {")", '"'}
        and len(words) >= 0.6 * len(tokens)
        and not _FUNCTION_WORDS.isdisjoint(words)
    )
