"""What analyze, inspect, export and corpus pass on and print; the work itself is stubbed."""

from __future__ import annotations

import json
import types

import pytest
from mnemoscope.analyzer.errors import CorpusError
from mnemoscope.analyzer.result import open_result


@pytest.fixture
def stubbed(monkeypatch, tree):
    """Stub the analysis; gives what it was called with."""
    seen = {}
    model = types.SimpleNamespace(vocabulary="words")

    def analyze(opened, corpus, **options):
        seen.update(options, model=opened, corpus=corpus)
        if options["report"]:
            options["report"]("Running on the CPU.")
        if options["progress"]:
            options["progress"](1, 2)
        return tree

    def read_corpus(path, vocabulary, level=None):
        seen.update(path=path, vocabulary=vocabulary, level=level)
        return "corpus"

    monkeypatch.setattr("mnemoscope.analyzer.model.open_model", lambda path: model)
    monkeypatch.setattr("mnemoscope.analyzer.corpus.read_corpus", read_corpus)
    monkeypatch.setattr("mnemoscope.analyzer._analyze.analyze", analyze)
    return seen


class TestAnalyze:
    def test_unset_options_are_none(self, run, stubbed, tmp_path):
        done = run("analyze", "m.onnx", "-", "-o", tmp_path / "r.nc")
        assert done.exit_code == 0
        assert (stubbed["path"], stubbed["vocabulary"], stubbed["corpus"]) == (
            "-",
            "words",
            "corpus",
        )
        names = "delays states method precision provider positions seed blocks step memory tf32"
        assert {n: stubbed[n] for n in (*names.split(), "threads", "level")} == dict.fromkeys(
            (*names.split(), "threads", "level")
        )

    def test_options_are_passed_on(self, run, stubbed, tmp_path):
        options = (
            "--delays 7 --state a --state b --method fd --precision float64 --provider cpu "
            "--positions 90 --seed 3 --blocks 4 --step 0.5 --level char --memory 1.5 --tf32 "
            "--threads 2"
        )
        run("analyze", "m.onnx", "c.txt", "-o", tmp_path / "r.nc", *options.split())
        expected = {
            "delays": 7,
            "states": ["a", "b"],
            "method": "fd",
            "precision": "float64",
            "provider": "cpu",
            "positions": 90,
            "seed": 3,
            "blocks": 4,
            "step": 0.5,
            "level": "char",
            "memory": 1_500_000_000,
            "tf32": True,
            "threads": 2,
        }
        assert {k: stubbed[k] for k in expected} == expected

    def test_says_what_it_did_and_what_next(self, run, stubbed, tmp_path):
        path = tmp_path / "r.nc"
        done = run("analyze", "m.onnx", "c.txt", "-o", path)
        assert done.stderr == "Running on the CPU.\n"
        first, second, third = done.stdout.splitlines()
        assert first.startswith("200 input positions, delays 0 to 5, in ")
        assert first.endswith(" s; states: lstm0.h, lstm0.c.")
        assert second.startswith("Whitened σ₁ clear of its noise floor: lstm0.h up to delay ")
        assert third == f"Written to {path}; next: mnemoscope show {path}"
        assert list(open_result(path).children) == ["lstm0.h", "lstm0.c"]

    def test_no_progress_bar_without_a_terminal(self, run, stubbed, tmp_path):
        run("analyze", "m.onnx", "c.txt", "-o", tmp_path / "r.nc")
        assert stubbed["progress"] is None

    def test_quiet(self, run, stubbed, tmp_path):
        done = run("analyze", "m.onnx", "c.txt", "-o", tmp_path / "r.nc", "--quiet")
        assert done.output == ""
        assert stubbed["report"] is None

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--step", "1"], "add --method fd"),
            (["--blocks", "1"], "'--blocks': 1 is not in the range x>=2"),
            (["--positions", "0"], "'--positions': 0 is not in the range x>=1"),
            (["--memory", "0"], "'--memory': 0.0 is not in the range x>0"),
            (["--method", "magic"], "'magic' is not one of 'jvp', 'fd'"),
        ],
    )
    def test_wrong_options(self, run, stubbed, tmp_path, options, said):
        done = run("analyze", "m.onnx", "c.txt", "-o", tmp_path / "r.nc", *options)
        assert done.exit_code == 2
        assert said in done.stderr
        assert not stubbed
        assert list(tmp_path.iterdir()) == []

    def test_the_output_is_checked_before_the_work(self, run, stubbed, tmp_path):
        done = run("analyze", "m.onnx", "c.txt", "-o", tmp_path / "no" / "r.nc")
        assert done.exit_code == 2
        assert "there is no folder" in done.stderr
        assert not stubbed

    def test_an_error_leaves_no_file(self, run, stubbed, tmp_path, monkeypatch):
        def fail(*arguments, **options):
            raise CorpusError("The corpus c.txt is empty; expected text.")

        monkeypatch.setattr("mnemoscope.analyzer._analyze.analyze", fail)
        done = run("analyze", "m.onnx", "c.txt", "-o", tmp_path / "r.nc")
        assert done.exit_code == 2
        assert done.stderr == "Error: The corpus c.txt is empty; expected text.\n"
        assert list(tmp_path.iterdir()) == []


DESCRIPTION = {
    "path": "m.onnx",
    "ir_version": 8,
    "opset": {"ai.onnx": 18},
    "producer": "someone 1",
    "roles": {"tokens": "t", "embedding": "e", "logits": "l", "normalized": False},
    "embedding_size": 6,
    "states": [
        {
            "name": name,
            "kind": "hidden",
            "layer": 0,
            "size": 8,
            "dtype": "float32",
            "differentiated": True,
            "input": "in",
            "output": "out",
            "initial": "stored",
        }
        for name in ("[h]", "c")
    ],
    "vocabulary": {"size": 2000, "level": "word", "unknown": "[/red]", "end_of_line": None},
    "source": {"framework": "pytorch", "framework_version": "2"},
    "parameters": {"count": 1234567, "bytes": 4938268},
    "blocks": {
        "[h]": {"[h]": "dense", "c": "zero", "embedding": "diagonal"},
        "c": {"[h]": "dense", "c": "identity", "embedding": "dense"},
    },
    "obstacle": None,
    "operators_without_rule": [],
    "providers": {"cpu": True, "cuda": False},
}


class TestInspect:
    @pytest.fixture
    def describe(self, monkeypatch):
        data = json.loads(json.dumps(DESCRIPTION))
        monkeypatch.setattr("mnemoscope.analyzer.model.open_model", lambda path: path)
        monkeypatch.setattr("mnemoscope.analyzer._describe.describe", lambda model: data)
        return data

    def test_prints_the_blocks_as_a_matrix(self, run, describe):
        text = run("inspect", "m.onnx").stdout
        rows = [[c.strip() for c in x.split("│")[1:-1]] for x in text.splitlines() if "│" in x]
        assert rows[-2:] == [
            ["[h]", "dense", "zero", "diagonal"],
            ["c", "dense", "identity", "dense"],
        ]
        assert "2,000 word tokens; unknown: [/red]; end of line: none" in text
        assert "IR version 8, opset 18; by someone 1" in text
        assert "stored values" in text
        assert "Providers: cpu; not usable here: cuda." in text

    def test_says_what_has_no_rule(self, run, describe):
        describe.update(blocks=None, obstacle="Foo has no rule.", operators_without_rule=["Foo"])
        text = run("inspect", "m.onnx").stdout
        assert "No block derivatives: Foo has no rule." in text
        assert "Operators without a block rule: Foo." in text

    def test_json(self, run, describe):
        assert json.loads(run("inspect", "m.onnx", "--json").stdout) == DESCRIPTION


class TestExport:
    def test_without_torch(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr("mnemoscope.cli.export.find_spec", lambda name: None)
        done = run("export", "torch", "model.py:LM", "-o", tmp_path / "m.onnx")
        assert done.exit_code == 2
        assert "pip install 'mnemoscope[torch]'" in done.stderr

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--state-shapes", "[1,"], "--state-shapes must be JSON, such as"),
            (["--tolerance", "0"], "'--tolerance'"),
            (["--seed", "x"], "'x' is not a valid integer"),
        ],
    )
    def test_wrong_options(self, run, tmp_path, options, said):
        done = run("export", "torch", "model.py:LM", "-o", tmp_path / "m.onnx", *options)
        assert done.exit_code == 2
        assert said in done.stderr

    def test_never_replaces_its_input(self, run, tmp_path):
        file = tmp_path / "model.py"
        file.write_text("x = 1")
        done = run("export", "torch", f"{file}:x", "-o", file)
        assert done.exit_code == 2
        assert "is also an input" in done.stderr
        assert file.read_text() == "x = 1"


class TestCorpus:
    @pytest.fixture
    def lines(self, monkeypatch):
        monkeypatch.setattr("mnemoscope.analyzer.pydoc_corpus.lines", lambda: iter(["a ü .", "b"]))

    def test_to_standard_output(self, run, lines):
        assert run("corpus", "pydoc").stdout_bytes == "a ü .\nb\n".encode()

    def test_to_a_file(self, run, lines, tmp_path):
        done = run("corpus", "pydoc", "-o", tmp_path / "c.txt")
        assert done.output == ""
        assert (tmp_path / "c.txt").read_bytes() == "a ü .\nb\n".encode()
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_folder_is_refused(self, run, lines, tmp_path):
        done = run("corpus", "pydoc", "-o", tmp_path)
        assert done.exit_code == 2
        assert "is a folder; name the file" in done.stderr
