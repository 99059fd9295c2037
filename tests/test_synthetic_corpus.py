"""The made-up language: its rules, its files, and its least perplexity by simulation."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.analyzer import synthetic_corpus
from mnemoscope.analyzer.errors import CorpusError
from mnemoscope.analyzer.synthetic_corpus import Language, perplexities, write_corpus
from mnemoscope.cli.main import main

EOS = "<eos>"


def text_of(language: Language, lines: int, seed=0) -> list[list[str]]:
    names = language.tokens
    return [
        [t for new, old in line for t in (names[new], *[names[old]] * language.repetitions)]
        for line in islice(language.lines(seed), lines)
    ]


class Oracle:
    """A reader of tokens that knows the rules and nothing else: the probability of each next one.

    Written from the paper's description, on the stream of tokens, not of cycles: it counts equal
    neighbours' places in the cycle and the cycles of the line.
    """

    def __init__(self, vocabulary=10, repetitions=15, least=5, most=10):
        self.vocabulary, self.repetitions, self.lengths = vocabulary, repetitions, (least, most)
        self.place = self.cycles = 0
        self.history: list[str] = []  # first tokens of cycles, and the first cycle's second

    def probability(self, token: str) -> Fraction:
        if self.place == 0:  # a new token, or the end of the line
            least, most = self.lengths
            left = most - self.cycles + 1  # lengths that are still possible, all as probable
            end = Fraction(1, left) if self.cycles >= least else Fraction(0)
            if token == EOS:
                return end
            before = set(self.history[-2:])
            new = Fraction(int(token not in before), self.vocabulary - len(before))
            return (1 - end) * new
        if len(self.history) == 1:  # the second token of all
            return Fraction(int(token != self.history[0]), self.vocabulary - 1)
        return Fraction(int(token == self.history[-2]))

    def read(self, token: str) -> None:
        if token == EOS:
            self.cycles = 0
            return
        if self.place == 0:
            self.history.append(token)
        elif len(self.history) == 1:
            self.history.insert(0, token)
        self.place = (self.place + 1) % (self.repetitions + 1)
        self.cycles += self.place == 0


def costs(language: Language, lines: int, seed: int, *, knows_length: bool = False):
    """Per line: the oracle's summed negative log probability, and the number of tokens."""
    oracle = Oracle(
        language.vocabulary, language.repetitions, language.min_cycles, language.max_cycles
    )
    found = []
    for line in text_of(language, lines, seed):
        if knows_length:
            number = len(line) // (language.repetitions + 1)
            oracle.lengths = (number, number)
        total = 0.0
        for token in (*line, EOS):
            p = oracle.probability(token)
            assert p > 0, (token, oracle.history)  # the corpus keeps to the rules
            total -= math.log(p)
            oracle.read(token)
        found.append((total, len(line) + 1))
    return np.array(found[1:])  # without the first line, whose first tokens are less predictable


def test_the_paper_s_perplexity():
    found = perplexities(Language())
    assert round(found["paper"], 4) == 1.1375  # V20, equation 26
    line = [8 ** (n / (16 * n + 1)) for n in range(5, 11)]
    assert found["paper"] == pytest.approx(sum(line) / 6, rel=1e-14)
    assert line[0] == pytest.approx(1.1369, abs=1e-4)  # equation 25, to its four digits
    assert found["paper"] < found["known_length"] < found["attainable"] < 1.1932


@pytest.mark.parametrize(
    "language", [Language(), Language(4, 1, 1, 1), Language(6, 3, 2, 9)], ids=str
)
def test_least_perplexity_by_an_oracle(language):
    """A ratio of sums over independent lines, so its standard error is that of its residuals."""
    least = perplexities(language)
    for key, knows_length in (("attainable", False), ("known_length", True)):
        cost, tokens = costs(language, 800, 7, knows_length=knows_length).T
        rate = cost.sum() / tokens.sum()
        error = np.std(cost - rate * tokens, ddof=1) / math.sqrt(len(cost)) / tokens.mean()
        assert abs(rate - math.log(least[key])) <= 3 * error + 1e-12
        # So sharp that the other readings would fail, where they differ.
        if language.max_cycles > language.min_cycles:
            other = least["known_length" if key == "attainable" else "attainable"]
            assert abs(rate - math.log(other)) > 10 * error


def test_lines():
    """New tokens, repetitions, dependencies across lines, as section 4.2.1 has them."""
    lines = list(islice(Language().lines(3), 3000))
    cycles = [cycle for line in lines for cycle in line]
    for (new, old), (later, repeated) in pairwise(cycles):
        assert repeated == new  # across lines too: `cycles` knows none
        assert later not in (new, old)
    first_new, first_old = cycles[0]
    assert first_new != first_old
    counts = np.array([Counter(map(len, lines))[n] for n in range(5, 11)])
    assert counts.sum() == len(lines)
    assert np.all(abs(counts - 500) < 5 * math.sqrt(500 * 5 / 6))
    # Of the eight tokens that are left, each as often.
    rank = Counter()
    for (new, old), (later, _) in pairwise(cycles):
        rank[sorted(set(range(10)) - {new, old}).index(later)] += 1
    expected = (len(cycles) - 1) / 8
    chi2 = sum((rank[i] - expected) ** 2 / expected for i in range(8))
    assert chi2 < 24.3  # 7 degrees of freedom, p = 0.001


def test_first_cycles_differ_with_the_seed():
    firsts = {next(Language().lines(seed))[0] for seed in range(400)}
    assert all(a != b for a, b in firsts)
    assert len(firsts) > 80  # of 90
    assert next(Language().lines(-1)) != next(Language().lines(1))


def test_same_seed_same_lines_everywhere():
    """The bytes are part of what a seed means; every Python draws the same."""
    assert next(Language().lines(0)) == (
        (9, 3), (8, 9), (0, 8), (1, 0), (3, 1), (5, 3), (2, 5),
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.integers(4, 40), st.integers(1, 20), st.integers(1, 5), st.integers(0, 5), st.integers(0, 99)
)
def test_rules_hold_for_any_language(vocabulary, repetitions, least, more, seed):
    language = Language(vocabulary, repetitions, least, least + more)
    costs(language, 5, seed)  # asserts that the oracle never meets what it holds impossible
    assert len(set(language.tokens)) == vocabulary
    found = perplexities(language)
    assert found["known_length"] <= found["attainable"] < vocabulary + 1
    if not more:
        assert found["attainable"] == found["known_length"]


def test_an_oracle_with_wrong_rules_is_caught():
    """The check itself: a corpus that breaks a rule must not pass."""
    oracle = Oracle()
    for token in ["A", *["B"] * 15, "C", *["A"] * 15]:
        assert oracle.probability(token) > 0
        oracle.read(token)
    assert oracle.probability("A") == oracle.probability("C") == 0
    assert oracle.probability("B") == oracle.probability("D") == Fraction(1, 8)
    assert oracle.probability(EOS) == 0


# Files ---------------------------------------------------------------------------------------


def test_files(tmp_path):
    language = Language()
    info = write_corpus(tmp_path, language, {"train": 1000, "valid": 300, "test": 0}, seed=4)
    assert {p.name for p in tmp_path.iterdir()} == {
        "train.txt", "valid.txt", "valid.tsv", "vocabulary.txt", "synthetic.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "synthetic.json").read_text()) == info
    assert (tmp_path / "vocabulary.txt").read_text().split() == [*"ABCDEFGHIJ", EOS]
    for part, size in (("train", 1000), ("valid", 300)):
        lines = (tmp_path / f"{part}.txt").read_text().splitlines()
        tokens = [line.split(" ") for line in lines]
        assert tokens == text_of(language, len(lines), f"4 {part}")
        total = sum(map(len, tokens))
        assert info["parts"][part] == {"tokens": total, "lines": len(lines)}
        assert total >= size > total - len(tokens[-1])
        assert all(len(line) % 16 == 0 and 80 <= len(line) <= 160 for line in tokens)
    assert (tmp_path / "train.txt").read_bytes() != (tmp_path / "valid.txt").read_bytes()


def test_labels(tmp_path):
    write_corpus(tmp_path, Language(), {"valid": 2000}, labelled=("valid",))
    table = (tmp_path / "valid.tsv").read_text()
    assert table.endswith("\n\n")
    sentences = [s.split("\n") for s in table.removesuffix("\n\n").split("\n\n")]
    lines = (tmp_path / "valid.txt").read_text().splitlines()
    assert [" ".join(row.split("\t")[0] for row in s) for s in sentences] == lines
    for rows in sentences:
        for i, row in enumerate(rows):
            token, labels = row.split("\t")
            count = i % 16
            kind = "2rep" if count else "1"
            assert labels == f"token-{kind}|token-{token}-{kind}|count-{count}"


def test_a_part_does_not_depend_on_the_others(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_corpus(tmp_path / "a", Language(), {"train": 500, "test": 200})
    write_corpus(tmp_path / "b", Language(), {"test": 200})
    files = [(tmp_path / x / "test.txt").read_bytes() for x in "ab"]
    assert files[0] == files[1]


def test_memory_does_not_grow_with_the_size(tmp_path):
    tracemalloc.start()
    peaks = []
    for size in (20_000, 600_000):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        write_corpus(tmp_path, Language(), {"train": size}, labelled=("train",))
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_a_failure_leaves_everything_as_it_was(tmp_path, monkeypatch):
    write_corpus(tmp_path, Language(), {"train": 500})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic_corpus, "perplexities", full)  # the last thing that is written
    with pytest.raises(OSError, match="No space"):
        write_corpus(tmp_path, Language(), {"train": 900, "test": 900}, seed=1)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"vocabulary": 3}, "4 to 10,000 tokens, not 3"),
        ({"vocabulary": 20_000}, "not 20,000"),
        ({"repetitions": 0}, "1 to 100,000 repetitions"),
        ({"repetitions": 10**6}, "not 1,000,000"),
        ({"min_cycles": 0}, "found 0 to 10"),
        ({"min_cycles": 11}, "found 11 to 10"),
        ({"max_cycles": 10**6}, "found 5 to 1,000,000"),
    ],
)
def test_languages_that_cannot_be(arguments, said):
    with pytest.raises(CorpusError, match=said):
        Language(**arguments)


# The command ---------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(main, ["corpus", "synthetic", *map(str, arguments)])


def test_command(tmp_path):
    folder = tmp_path / "out"
    sizes = ("--train", 800, "--valid", 300, "--test", 300)
    done = call("-o", folder, *sizes, "--seed", 2)
    assert done.exit_code == 0, done.output
    assert "Least perplexity: 1.1545" in done.stdout
    assert "1.1375" in done.stdout
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "train.tsv" not in first
    again = call("-o", folder, *sizes, "--seed", 2, "--json")  # into the folder that is there
    assert json.loads(again.stdout) == json.loads(first["synthetic.json"])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first
    assert call("-o", folder, *sizes, "--seed", 3, "--label-train").exit_code == 0
    assert (folder / "train.tsv").exists()
    assert (folder / "train.txt").read_bytes() != first["train.txt"]


def test_the_command_s_defaults_are_the_paper_s():
    command = main.get_command(None, "corpus").get_command(None, "synthetic")
    defaults = {o.name: o.default for o in command.params}
    assert [defaults[p] for p in ("train", "valid", "test")] == [16_000_000, 160_000, 160_000]
    assert Language(
        *(defaults[k] for k in ("vocabulary_size", "repetitions", "min_cycles", "max_cycles"))
    ) == Language()  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--train", -1), "train must be 0 tokens or more, not -1"),
        (("--test", "many"), "'many' is not a valid integer"),
        (("--vocabulary-size", 3), "4 to 10,000 tokens, not 3"),
        (("--repetitions", 0), "repetitions"),
        (("--min-cycles", 7, "--max-cycles", 6), "found 7 to 6"),
        (("--train", 0, "--valid", 0, "--test", 0), "nothing to write"),
    ],
)
def test_bad_calls(tmp_path, options, said):
    done = call("-o", tmp_path / "out", "--train", 100, *options)
    check_refused(done, said)
    assert list(tmp_path.iterdir()) == []


def check_refused(done, said):
    assert done.exit_code == 2
    assert done.stdout == ""
    assert isinstance(done.exception, SystemExit)
    assert [x.startswith("Error: ") for x in done.stderr.splitlines()].count(True) == 1
    assert said in done.stderr


def test_bad_folders(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_refused(call("-o", tmp_path / "file"), "is a file; name a folder")
    check_refused(call("-o", tmp_path / "no" / "out"), "No such file")
    check_refused(call(), "Missing option '-o'")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "vocabulary.txt").mkdir()  # cannot be replaced by a file
    check_refused(call("-o", tmp_path / "full", "--train", 100), "cannot be written")
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left == {"file", "full", "full/vocabulary.txt"}
    assert (tmp_path / "file").read_text() == "mine"


def test_what_was_made_for_a_failure_is_taken_away(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic_corpus, "perplexities", full)
    check_refused(call("-o", tmp_path / "out", "--train", 100), "No space left on device")
    assert list(tmp_path.iterdir()) == []
