from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from mnemoscope.analyzer import separability
from mnemoscope.analyzer.result import save_result
from mnemoscope.analyzer.separability_sets import read_sets
from property_trees import embeddings, property_tree, vocabulary


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("property") / "r.nc"
    save_result(property_tree(), path)
    return str(path)


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """Search one strength in place of four: the search has its own tests."""
    monkeypatch.setattr(separability, "_STRENGTHS", (0.1,))


FAST = "--no-separability"
NUMBER = ("--a", "NN", "--b", "NNS")


class TestProperty:
    def test_prints_separability_first_then_the_curves(self, run, file):
        done = run("property", file, *NUMBER, "--state", "lstm0.c")
        assert done.exit_code == 0
        text = done.stdout
        first = text.index("Separability of the classes")
        assert first < text.index("NN − NNS · lstm0.c · inputs: all")
        assert "NN: 30 types, and 2 more occur with it that are as often something else" in text
        assert "NNS: 25 types;" in text
        assert "shuffled: its own types dealt out at random" in text
        assert "lstm0.h" not in text
        assert "* σ₁ does not exceed its noise floor" in text
        assert "Warning" not in done.stderr

    def test_warns_where_the_classes_cannot_be_told_apart(self, run, file):
        done = run("property", file, "--a", "VB", "--b", "NN,NNS", "--json")
        assert done.exit_code == 0
        assert "Warning: VB − NN+NNS is not separable" in done.stderr
        (found,) = json.loads(done.stdout)["properties"]
        assert found["separability"]["separable"] is False

    def test_json(self, run, file):
        data = json.loads(run("property", file, *NUMBER, FAST, "--json").stdout)
        assert [c["state"] for c in data["curves"]] == ["lstm0.h", "lstm0.c"]
        row = data["curves"][1]["rows"][0]
        assert 0 <= row["m_random_low"] < row["m_random_high"] <= 1
        assert row["m_stderr"] > 0
        assert row["clear_of_noise"] is True
        (found,) = data["properties"]
        assert (found["types_a"], found["types_b"], found["pool"]) == (30, 25, "members")
        assert found["equation14"] > 0
        assert found["separability"] is None

    def test_csv_of_several(self, run, file, tmp_path):
        many = tmp_path / "many.toml"
        many.write_text(
            '[[property]]\nname = "number"\na = ["NN"]\nb = ["NNS"]\ngroup = "NN"\n'
            '[[property]]\nname = "gone"\na = ["NN"]\nb = ["JJ"]\n'
            '[[property]]\nname = "royal"\ndirection = "king - man"\n',
            encoding="utf-8",
        )
        done = run("property", file, "--properties", many, FAST, "--csv", "-n", 2)
        assert done.exit_code == 0
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert [(r["property"], r["inputs"]) for r in rows[::8]] == [
            ("number", "NN"),
            ("royal", "all"),
        ]
        assert "cos2" in rows[0]
        assert "cos5" not in rows[0]
        assert "Left out: gone: The result has no class 'JJ'" in done.stderr

    def test_own(self, run, file):
        data = json.loads(run("property", file, *NUMBER, FAST, "--own", "--json").stdout)
        assert data["curves"][0]["inputs"] == ["NN", "NNS"]
        data = json.loads(run("property", file, *NUMBER, FAST, "--group", "VB", "--json").stdout)
        assert data["curves"][0]["inputs"] == ["VB"]

    def test_words(self, run, file, tmp_path):
        listed = tmp_path / "w.txt"
        listed.write_text("king\nman\n", encoding="utf-8")
        done = run("property", file, "--a-words", listed, "--b-words", "queen,woman", "--name", "g")
        assert done.exit_code == 0
        assert "Separability not tested: g: 2 classes with at least 5 types each" in done.stderr
        assert "shuffled: the types of the vocabulary dealt out at random" in done.stdout

    def test_arithmetic(self, run, file):
        done = run("property", file, "--direction", "king - man + woman")
        assert done.exit_code == 0
        assert "no classes, so nothing to separate" in done.stderr

    def test_figure(self, run, file, tmp_path):
        path = tmp_path / "f.svg"
        done = run("property", file, *NUMBER, FAST, "-o", path, "--name", "a $number$")
        assert done.exit_code == 0
        assert f"Written to {path}." in done.stderr
        assert "a $number$ -->" in path.read_text(encoding="utf-8")

    def test_missing_blocks_are_said_with_the_remedy(self, run, tmp_path):
        path = tmp_path / "b.nc"
        save_result(property_tree(block_gradient_limit=0), path)
        done = run("property", path, *NUMBER, FAST, "--json")
        assert done.exit_code == 0
        assert "no standard errors. Run mnemoscope analyze again with a larger --keep-blocks" in (
            done.stderr
        )
        assert json.loads(done.stdout)["curves"][0]["rows"][0]["m_stderr"] is None

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ((), "Say what the property is"),
            (("--a", "NN"), "Say what the property is"),
            (("--a", "NN", "--a-words", "king", "--b", "NNS"), "Say what the property is"),
            ((*NUMBER, "--direction", "king - man"), "Say what the property is"),
            (("--a", "NN", "--b", "JJ"), "no class 'JJ'; it has NN, NNS, VB, UH, FW"),
            (("--a", "NN", "--b", "FW"), "the class is empty"),
            (("--a", "NN", "--b", "UH"), "UH has one member"),
            (("--a", "NN", "--b", "NN"), "both sides are the same types"),
            (("--a-words", "king", "--b-words", "kong"), "no word 'kong'"),
            (("--direction", "king-man"), "Put spaces around the signs"),
            (("--suffix", "ing"), "holds 0 word(s)"),
            ((*NUMBER, "--own", "--group", "NN"), "exclude each other"),
            ((*NUMBER, "--group", "JJ"), "no group 'JJ'"),
            ((*NUMBER, "--state", "gru"), "no state 'gru'"),
            ((*NUMBER, "-n", "0"), "Invalid value for '-n'"),
            ((*NUMBER, "--members", "some"), "Invalid value for '--members'"),
            (("--a-words", "king", "--b-words", "man", "--own"), "no gradient of its own"),
            ((*NUMBER, "--model", "none.onnx"), "no model file none.onnx"),
            ((*NUMBER, "--properties", "p.toml"), "leave out --a, --b"),
            (("--properties", "p.toml"), "there is no file p.toml"),
        ],
    )
    def test_bad_calls_write_nothing(self, run, file, tmp_path, options, said):
        done = run("property", file, *options, "-o", tmp_path / "f.png")
        assert done.exit_code == 2
        assert said in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_result_without_embeddings(self, run, tmp_path):
        tree = property_tree()
        del tree["embeddings"]
        save_result(tree, tmp_path / "n.nc")
        done = run("property", tmp_path / "n.nc", *NUMBER)
        assert done.exit_code == 2
        assert "Give the model that was analysed (--model FILE.onnx)" in done.stderr

    def test_singular_covariance(self, run, tmp_path):
        table = embeddings()
        table[:, 2] = 1.0
        save_result(property_tree(table=table), tmp_path / "s.nc")
        data = json.loads(run("property", tmp_path / "s.nc", *NUMBER, FAST, "--json").stdout)
        assert np.isfinite([r["m"] for r in data["curves"][0]["rows"]]).all()


class TestSeparability:
    def test_table(self, run, file):
        done = run("separability", file)
        assert done.exit_code == 0
        rows = [line for line in done.stdout.splitlines() if " ± 0." in line]
        # `all tags`, `nouns`, `N-V` and `sg-pl` are what these classes can fill.
        assert [r.split("  ")[1].strip() for r in rows] == [
            "all tags (3)", "nouns (2)", "N-V (2)", "sg-pl (NN+NNP - NNS+NNPS) (2)",
        ]  # fmt: skip
        assert "Left out: adverbs: 2 classes with at least 5 types" in done.stderr
        assert done.stderr.count("adverbs") == 1
        assert "classes with fewer than 5 types left out: UH 1, FW 0" in done.stdout
        assert rows[1].endswith("yes  ")

    def test_json_of_own_sets(self, run, file, tmp_path):
        sets = tmp_path / "s.toml"
        sets.write_text('[[set]]\nname = "x"\nclasses = ["NN", "VB"]\n', encoding="utf-8")
        data = json.loads(run("separability", file, "--sets", sets, "--json").stdout)
        (one,) = data["sets"]
        assert one["sizes"] == {"NN": 30, "VB": 21}
        assert {"accuracy", "stderr", "majority", "shuffled", "separable"} <= set(one)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "one or more [[set]] tables"),
            ('[[set]]\nclasses = ["UH", "FW"]', "No set of classes can be told apart."),
            ('[[set]]\nclasses = ["JJ", "FW"]', "no class 'JJ'"),
        ],
    )
    def test_bad_sets(self, run, file, tmp_path, text, said):
        sets = tmp_path / "s.toml"
        sets.write_text(text, encoding="utf-8")
        done = run("separability", file, "--sets", sets)
        assert done.exit_code == 2
        assert said in done.stderr


def test_vocabulary_is_what_the_tests_say():
    assert len(set(vocabulary())) == len(vocabulary()) == len(embeddings())


def test_the_example_of_the_document_runs(run, tmp_path, monkeypatch):
    """Its file of properties and its Python, on fewer positions; its file of sets is read."""
    root = Path(__file__).resolve().parent.parent.parent
    text = (root / "docs/properties.md").read_text(encoding="utf-8")
    properties, sets = re.findall(r"```toml\n(.*?)```", text, re.S)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    Path("properties.toml").write_text(properties, encoding="utf-8")
    Path("sets.toml").write_text(sets, encoding="utf-8")
    model = root / "samples/models/pydoc-lstm.onnx"
    run("corpus", "pydoc", "-o", "corpus.txt")
    done = run("analyze", model, "corpus.txt", "-o", "result.nc", "--positions", 60,
               "--delays", 3, "-q")  # fmt: skip
    assert done.exit_code == 0
    done = run("property", "result.nc", "--properties", "properties.toml", "--state", "lstm0.c",
               "--json", "-o", "properties.png")  # fmt: skip
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert [p["name"] for p in data["properties"]] == [
        "with s - without s", "nouns - verbs", "returns - raises",
    ]  # fmt: skip
    assert "Left out" not in done.stderr
    # What needs no gradients is what the document prints.
    first = data["properties"][0]
    assert (first["types_a"], first["pool"]) == (142, "pairs")
    exec(compile(code, "docs/properties.md", "exec"), {})
    tags = lexicon(["NN", "NNS", "NNP", "NNPS", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ"])
    assert len(read_sets("sets.toml", tags)) == 3


def lexicon(groups):
    from mnemoscope.analyzer.lexicon import Lexicon
    from scipy.sparse import csr_array

    n = len(groups)
    counts = csr_array(np.eye(n, dtype=np.int64))
    return Lexicon(np.eye(n), None, tuple(groups), counts, np.ones(n), np.eye(n), np.eye(n))
