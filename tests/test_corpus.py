"""Text becomes token ids, or a clear refusal."""

from __future__ import annotations

import hashlib
import io
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.analyzer.corpus import read_corpus
from mnemoscope.analyzer.errors import CorpusError
from mnemoscope.analyzer.roles import Vocabulary

WORDS = Vocabulary(("a", "b", "ü", "<unk>", "<eos>"), "word", "<unk>", "<eos>")
CLOSED = Vocabulary(("a", "b", "<eos>"), "word", None, "<eos>")
PLAIN = Vocabulary(("a", "b"), "word")
CHARS = Vocabulary(("a", "b", " ", "\n"), "char", None, "\n")


@pytest.fixture
def read(tmp_path):
    def call(content, vocabulary=WORDS, **options):
        path = tmp_path / "c.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_corpus(path, vocabulary, **options)

    return call


@pytest.mark.parametrize(
    ("text", "vocabulary", "ids", "lines", "unknown"),
    [
        ("a b\n", WORDS, [0, 1, 4], 1, 0),
        ("a b", WORDS, [0, 1, 4], 1, 0),  # the last line need not end
        ("a\n\nb\n", WORDS, [0, 4, 4, 1, 4], 3, 0),  # an empty line is a line
        ("a\r\nb\r\n", WORDS, [0, 4, 1, 4], 2, 0),
        ("\ufeffa b\n", WORDS, [0, 1, 4], 1, 0),
        ("  a\t b  \n", WORDS, [0, 1, 4], 1, 0),
        ("a\x0cb\n", WORDS, [0, 1, 4], 1, 0),  # a form feed is white space, not a line's end
        ("a zebra ü\n", WORDS, [0, 3, 2, 4], 1, 1),
        ("a b\na\n", PLAIN, [0, 1, 0], 2, 0),
        ("ab a\n", CHARS, [0, 1, 2, 0, 3], 1, 0),
    ],
)
def test_text(read, text, vocabulary, ids, lines, unknown):
    corpus = read(text, vocabulary)
    assert corpus.ids.tolist() == ids
    assert (len(corpus), corpus.lines, corpus.unknown) == (len(ids), lines, unknown)
    assert corpus.ids.dtype == np.int64


def test_hash_is_that_of_the_bytes(read):
    assert read(b"a b\r\n").sha256 == hashlib.sha256(b"a b\r\n").hexdigest()


def test_level_overrides(read):
    both = Vocabulary(("a", "b", "ab", " "), "word")
    assert read("ab a\n", both).ids.tolist() == [2, 0]
    assert read("ab a\n", both, level="char").ids.tolist() == [0, 1, 3, 0]


def test_ids_without_a_vocabulary(read):
    assert read("3 1\n4\n", None).ids.tolist() == [3, 1, 4]


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a b\n")))
    corpus = read_corpus("-", WORDS)
    assert corpus.ids.tolist() == [0, 1, 4]
    assert corpus.name == "standard input"


@pytest.mark.parametrize(
    ("text", "vocabulary", "options", "said"),
    [
        (b"", WORDS, {}, "is empty; expected text, one sentence a line"),
        (b"\n \n\t\n", WORDS, {}, "is empty; expected text"),
        (b"\xef\xbb\xbf", WORDS, {}, "is empty"),
        (b"a b\na caf\xe9\n", WORDS, {}, r"is not UTF-8 text: byte 9 \(line 2\)"),
        ("a".encode("utf-16"), WORDS, {}, r"is not UTF-8 text: byte 0 \(line 1\)"),
        (b"a zebra yak zebra\n", CLOSED, {},
         r"3 words \(2 distinct\).*no unknown token.*'zebra', 'yak'"),
        (b"abc\n", CHARS, {}, r"1 characters \(1 distinct\)"),
        (b"zebra yak\ngnu\n", WORDS, {}, "Not one token .* check that they belong together"),
        (b"ab\n", None, {"level": "char"}, "characters cannot be looked up"),
        (b"1 two 3\n", None, {}, "must hold token ids; found 'two'"),
        (b"1 -2\n", None, {}, "found '-2'"),
        (b"1 99999999999999999999999\n", None, {}, "found '99999999999999999999999'"),
        ("1 ²\n".encode(), None, {}, "found '²'"),
        (b"1 1_0\n", None, {}, "found '1_0'"),
    ],
)  # fmt: skip
def test_refusals(read, text, vocabulary, options, said):
    with pytest.raises(CorpusError, match=said):
        read(text, vocabulary, **options)


def test_missing_and_folder(tmp_path):
    with pytest.raises(CorpusError, match=r"There is no corpus file .*no\.txt"):
        read_corpus(tmp_path / "no.txt", WORDS)
    with pytest.raises(CorpusError, match="cannot be read: Is a directory"):
        read_corpus(tmp_path, WORDS)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ü", "nix"])), min_size=1))
def test_every_line_ends_and_every_word_counts(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("c") / "c.txt"
    path.write_text("\n".join(" ".join(line) for line in lines) + "\n", encoding="utf-8")
    words = [w for line in lines for w in line]
    try:
        corpus = read_corpus(path, WORDS)
    except CorpusError:
        assert not set(words) & {"a", "b", "ü"}
        return
    assert len(corpus) == len(words) + len(lines)
    assert (corpus.ids == 4).sum() == len(lines)
    assert corpus.unknown == words.count("nix")
