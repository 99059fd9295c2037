"""The corpus made of pydoc's help topics: what is kept, what is dropped, in which form."""

import sys

import pytest
from mnemoscope.analyzer.errors import CorpusError
from mnemoscope.analyzer.pydoc_corpus import lines

# Text as pydoc's topics hold it, and the sentences that it must give.
CASES = [
    ("heading", 'The "if" statement\n******************', []),
    ("underlined part", "Notes\n=====\n\nThis is kept.", ["this is kept ."]),
    ("grammar", '   if_stmt ::= "if" expression ":" suite\n              ["else" ":" suite].', []),
    ("code", "   if flag is not None:\n       do(it)", []),
    ("session", "   >>> It is the end.\n   This is not.", []),
    ("table", "+-----+\n| This is a table. |\n+-----+", []),
    ("signature", "str.join(iterable)", []),
    ("fragment", "* in a capture pattern,", []),
    ("no full stop", "This is not a sentence", []),
    (
        "two on wrapped lines",
        "It is one sentence,\non two lines.  This is another.",
        ["it is one sentence , on two lines .", "this is another ."],
    ),
    ("bullets", "* This is one.\n\n* This is\n  two.", ["this is one .", "this is two ."]),
    (
        "bullets without a gap",
        "* This is one.\n* This is two.",
        ["this is one .", "this is two ."],
    ),
    (
        "term and body",
        'Integers ("int")\n   These are numbers.',
        ["these are numbers ."],
    ),
    (
        "literals",
        'The names "None" and "len()" are not "x[i:j]" or "is not".',
        ["the names none and len are not <code> or is not ."],
    ),
    (
        "literals with quotes",
        "It is the \"'r'\" or the \"'b'\" here.",
        ["it is the <code> or the <code> here ."],
    ),
    ("footnote mark or index", 'It is not "x[1]" here.', ["it is not <code> here ."]),
    (
        "sentence begins with a literal",
        'This is it. "len()" is a name.',
        ["this is it .", "len is a name ."],
    ),
    ("half a literal", 'It is a dict {"one": 1, "two": 2} of two.', []),
    (
        "emphasis",
        "The *x* is a **PEP 8** name.",
        ["the x is a pep N name ."],
    ),
    (
        "numbers",
        "In 3.11 a 2-tuple is 1,000 of x2.",
        ["in N a N-tuple is N of x2 ."],
    ),
    (
        "typography",
        "It’s a “rich” one — it doesn’t end…  So it is.",
        ["it 's a \" rich \" one -- it does n't end ... so it is ."],
    ),
    ("footnote mark", "It is noted. [1] This is too.", ["it is noted .", "this is too ."]),
    ("abbreviation", "It is so (e.g. The one).", ["it is so ( e.g. the one ) ."]),
    (
        "version note",
        "Changed in version 3.8: This is now kept.",
        ["this is now kept ."],
    ),
    (
        "implementation note",
        "**CPython implementation detail:** It is so in CPython.",
        ["it is so in cpython ."],
    ),
    ("address", "It is at https://example.org for now.", []),
    ("again", "This is it again.\n\nThis is it again.", ["this is it again ."]),
]


@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_sentences(text, expected):
    assert list(lines({"topic": text})) == expected


def test_topics_are_read_by_name_and_repetitions_dropped():
    topics = {"b": "This is b.\n\nThis is both.", "a": "This is both.\n\nThis is a."}
    assert list(lines(topics)) == ["this is both .", "this is a .", "this is b ."]


@pytest.fixture(scope="module")
def corpus():
    return list(lines())


def test_deterministic(corpus):
    assert list(lines()) == corpus


def test_size(corpus):
    assert len(corpus) > 1500
    assert sum(len(line.split()) for line in corpus) > 30_000


def test_form(corpus):
    assert len(set(corpus)) == len(corpus)
    for line in corpus:
        tokens = line.split()
        assert line == " ".join(tokens)
        assert len(tokens) >= 4
        assert all(t.replace("N", "n") == t.lower() for t in tokens), line
        assert tokens[-1] in (".", "?", "!", ":", ")", '"'), line
        assert all(t[-1].isalnum() or t[-1] in "_.>" or len(t) <= 2 or t == "..." for t in tokens)


def test_it_is_english(corpus):
    counts: dict[str, int] = {}
    for line in corpus:
        for token in line.split():
            counts[token] = counts.get(token, 0) + 1
    ranked = sorted(counts, key=counts.get, reverse=True)
    assert ranked[0] == "the"
    assert {"a", "is", "of", "to", "in", "and", ".", ","} <= set(ranked[:15])


def test_python_without_help_texts(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(CorpusError, match=r"without its help texts .* give another corpus"):
        list(lines())
