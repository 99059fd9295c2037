from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import models
import numpy as np
import pytest
from mnemoscope.analyzer.result import open_result, save_result
from mnemoscope.cli._analysis import is_result

from .conftest import make_tree

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def write(path, tree, **attributes):
    tree.attrs.update(attributes)
    save_result(tree, path)
    return str(path)


def scaled(tree, factor):
    """The result of a model that remembers `factor` times as much."""
    for node in tree.children.values():
        for name in node.data_vars:
            if "count" not in name and "selectivity" not in name:
                node[name] = node[name] * factor
    return tree


@pytest.fixture
def files(tmp_path):
    """A reference, and one that remembers a tenth more."""
    b = write(tmp_path / "b.nc", make_tree(), model_sha256="b")
    a = write(tmp_path / "a.nc", scaled(make_tree(), 1.1), model_sha256="a")
    return a, b


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    words = rng.choice(models.WORDS[:-2], (30, 8))
    path = tmp_path / "c.txt"
    path.write_text("\n".join(" ".join(line) for line in words), encoding="utf-8")
    return str(path)


@pytest.fixture
def model(tmp_path):
    return str(models.save(models.flat(), tmp_path / "m.onnx"))


class TestResults:
    def test_table(self, run, files):
        done = run("compare", *files)
        assert (done.exit_code, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"A: {files[0]} (model m.onnx, corpus c.txt, positions 200")
        assert lines[1].startswith(f"B: {files[1]} (")
        assert "lstm0.c · inputs: all · whitened · paired (same positions)" in lines
        rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
        assert [int(r[0]) for r in rows] == [0, 1, 2, 3, 5] * 2
        assert {r[3].split("±")[0].strip() for r in rows} == {"1.0e-01"}
        assert {r[5].split("±")[0].strip() for r in rows} == {"+1.0e-01"}
        needed = re.search(r"Tolerance that would have passed: (\S+) \(relative", done.stdout)
        assert float(needed[1]) == pytest.approx(0.1, rel=0.011)
        assert "nan" not in done.stdout
        assert "inf" not in done.stdout

    def test_every_delay(self, run, files):
        done = run("compare", *files, "--all-delays", "--state", "lstm0.c")
        assert sum(line.startswith("│") for line in done.stdout.splitlines()) == 6

    def test_a_narrow_terminal_gets_two_tables(self, run, files, monkeypatch):
        import mnemoscope.cli._output as output
        from rich.console import Console

        monkeypatch.setattr(output, "console", lambda: Console(width=80))
        lines = run("compare", *files).stdout.splitlines()
        assert max(map(len, (x for x in lines if x.startswith("│")))) <= 80
        assert "…" not in "".join(lines)

    def test_identical(self, run, files):
        done = run("compare", files[0], files[0], "--tolerance", "0")
        assert done.exit_code == 0
        assert "Passed at --tolerance 0. Tolerance that would have passed: 0 (" in done.stdout

    def test_quiet_prints_only_a_failure(self, run, files):
        done = run("compare", *files, "-q")
        assert (done.exit_code, done.output) == (0, "")
        done = run("compare", *files, "-q", "--tolerance", "0.2")
        assert (done.exit_code, done.output) == (0, "")
        done = run("compare", *files, "-q", "--tolerance", "0.05")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr.startswith("Failed at --tolerance 0.05. Tolerance that would have")
        data = json.loads(run("compare", *files, "-q", "--json").stdout)
        assert data["required_tolerance"] == pytest.approx(0.1, rel=1e-3)

    def test_a_tolerance_is_a_test(self, run, files):
        failed = run("compare", *files, "--tolerance", "0.05")
        assert failed.exit_code == 1
        assert "Failed at --tolerance 0.05." in failed.stdout
        needed = re.search(r"would have passed: (\S+)", failed.stdout)[1]
        assert run("compare", *files, "--tolerance", needed).exit_code == 0
        below = str(np.nextafter(0.1, 0) * 0.999)
        assert run("compare", *files, "--tolerance", below).exit_code == 1

    def test_json(self, run, files):
        done = run("compare", *files, "--json", "--tolerance", "0.01")
        assert done.exit_code == 1
        data = json.loads(done.stdout, parse_constant=pytest.fail)
        assert set(data) == {
            "a", "b", "normalization", "group", "same_embedding_space", "notes", "unmatched_a",
            "unmatched_b", "states", "required_tolerance", "tolerance", "passed",
        }  # fmt: skip
        assert (data["passed"], data["tolerance"]) == (False, 0.01)
        assert data["required_tolerance"] == pytest.approx(0.1)
        assert data["a"]["attributes"]["method"] == "jvp"
        state = data["states"][1]
        assert set(state) == {
            "state_a", "state_b", "paired", "test", "gradients_not_compared",
            "angles_not_compared", "first_difference", "resolution", "measure",
            "required_tolerance", "worst_delay", "rows",
        }  # fmt: skip
        assert [r["delay"] for r in state["rows"]] == list(range(6))
        assert set(state["rows"][0]) == {
            "delay", "sigma1_a", "sigma1_b", "noise_floor_a", "noise_floor_b", "gradient",
            "gradient_stderr", "gradient_noise", "sigma1", "sigma1_stderr", "share1",
            "share1_stderr", "share5", "share5_stderr", "angles1", "angles5", "halves1",
            "halves5", "p_value", "differs",
        }  # fmt: skip

    def test_csv(self, run, files):
        done = run("compare", *files, "--csv", "--state", "lstm0.c")
        rows = list(csv.DictReader(done.stdout.splitlines()))
        (state,) = json.loads(run("compare", *files, "--json", "--state", "lstm0.c").stdout)[
            "states"
        ]
        assert len(rows) == len(state["rows"]) == 6
        for row, wanted in zip(rows, state["rows"], strict=True):
            assert (row["state_a"], row["state_b"]) == ("lstm0.c", "lstm0.c")
            assert (row["group"], row["normalization"]) == ("all", "whitened")
            assert row["differs"] == str(wanted["differs"])
            assert row["angles1"] == str(wanted["angles1"][0])
            angles = [row[f"angles5_{i}"] for i in range(1, 6)]
            assert angles == ["" if x is None else str(x) for x in wanted["angles5"]]
            for name in ("delay", "sigma1_a", "gradient", "gradient_stderr", "p_value", "halves5"):
                assert row[name] == ("" if wanted[name] is None else str(wanted[name])), name
        assert not re.search(r"\b(nan|inf)\b", done.stdout)
        failed = run("compare", *files, "--csv", "--tolerance", "0.05")
        assert (failed.exit_code, len(failed.stdout.splitlines())) == (1, 13)
        assert run("compare", *files, "--csv", "--json").exit_code == 2

    def test_without_gradients_it_is_said_and_no_tolerance_is_held(self, run, files, tmp_path):
        """A tolerance of gradients must not silently become one of σ₁."""
        bare = make_tree()
        node = bare["lstm0.c"].to_dataset(inherit=False)
        bare["lstm0.c"] = node.drop_vars(["gradient", "noise", "block_gradient"])
        path = write(tmp_path / "bare.nc", bare, model_sha256="b")
        for pair in [(files[0], path), (path, files[0])]:
            done = run("compare", *pair)
            assert done.exit_code == 0
            said = "Mean gradients not compared: {} hold(s) no mean gradients."
            assert said.format("B" if pair[1] == path else "A") in done.stdout
            done = run("compare", *pair, "--tolerance", "10")
            assert done.exit_code == 2
            assert f"({path}) holds none of lstm0.c. Analyse it again" in done.stderr
            done = run("compare", *pair, "--tolerance", "10", "--state", "lstm0.h")
            assert done.exit_code == 0

    def test_what_is_not_tested_is_not_said_to_be_alike(self, run, tmp_path):
        """A group in one block of five: no scatter, so no test."""
        rare = make_tree()
        for node in rare.children.values():
            node["block_count"][1:] = 0
        paths = [
            write(tmp_path / f"{i}.nc", scaled(rare.copy(deep=True), f), model_sha256=str(i))
            for i, f in enumerate((2.0, 1.0))
        ]
        done = run("compare", *paths)
        assert "not tested: the results keep too few blocks" in done.stdout
        assert "no difference" not in done.stdout

    def test_what_is_tested_at_some_delays_only_is_said(self, run, files):
        """Beyond delay 3 neither is clear of its noise, and five blocks leave but σ₁ to test."""
        done = run("compare", files[1], files[1])
        said = r"no difference beyond noise at any of (\d) delays .*not tested at (\d)"
        tested = re.findall(said, done.stdout)
        assert len(tested) == 2
        assert all(int(x) + int(y) == 6 for x, y in tested)

    def test_attributes_of_a_file_are_escaped(self, run, files, tmp_path):
        hostile = "c\n::error title=pwned::hello\x1b[31m"
        path = write(tmp_path / "h.nc", make_tree(), corpus=hostile, corpus_sha256="d")
        done = run("compare", files[0], path)
        assert done.exit_code == 0
        assert "The corpora differ" in done.stdout
        assert "\x1b" not in done.stdout
        assert not re.search(r"^::", done.stdout, re.M)

    def test_a_file_is_told_by_what_is_in_it(self, run, files, model, tmp_path):
        """As `check` tells it, whatever it is called."""
        plain = tmp_path / "result.bin"
        plain.write_bytes(Path(files[0]).read_bytes())
        assert run("compare", plain, files[1]).exit_code == 0
        other = tmp_path / "model.bin"
        other.write_bytes(Path(model).read_bytes())
        done = run("compare", other, files[1])
        assert "must be analysed first: name the text with --corpus" in done.stderr
        assert is_result(str(plain))
        assert not is_result(str(other))
        assert is_result("missing.nc")

    def test_nothing_in_the_reference_is_no_number(self, run, files, tmp_path):
        gone = make_tree()
        for node in gone.children.values():
            for name in node.data_vars:
                if "count" not in name:
                    axis = node[name].dims.index("delay")
                    node[name][(slice(None),) * axis + (5,)] = 0
        b = write(tmp_path / "gone.nc", gone)
        done = run("compare", files[0], b, "--tolerance", "1e9")
        assert done.exit_code == 1
        assert "B is 0" in done.stdout
        assert "No tolerance would have passed" in done.stdout
        assert not re.search(r"\b(nan|inf)\b", done.stdout)
        data = json.loads(run("compare", files[0], b, "--json").stdout, parse_constant=pytest.fail)
        assert data["required_tolerance"] is None
        assert data["states"][0]["rows"][5]["gradient"] is None
        done = run("compare", b, b, "--tolerance", "0")
        assert done.exit_code == 0
        assert not re.search(r"\b(nan|inf)\b", done.stdout)

    def test_match(self, run, files, tmp_path):
        b = write(tmp_path / "k.nc", make_tree(states=("h", "c")))
        done = run("compare", files[0], b, "--match", "lstm0.h=h", "--match", "lstm0.c=c")
        assert done.exit_code == 0
        assert "lstm0.h = h · inputs" in done.stdout
        assert "alone has" not in done.stdout

    def test_unmatched_states_are_reported(self, run, files, tmp_path):
        b = write(tmp_path / "k.nc", make_tree(states=("lstm0.h", "c")))
        done = run("compare", files[0], b)
        assert done.exit_code == 0
        assert "A alone has lstm0.c; B alone has c; not compared." in done.stdout
        data = json.loads(run("compare", files[0], b, "--json").stdout)
        assert (data["unmatched_a"], data["unmatched_b"]) == (["lstm0.c"], ["c"])
        done = run("compare", files[0], b, "--tolerance", "1")
        assert done.exit_code == 2
        assert "A tolerance must not pass over states" in done.stderr
        done = run("compare", files[0], b, "--tolerance", "1", "--state", "lstm0.h")
        assert done.exit_code == 0

    def test_other_corpora_are_said(self, run, files, tmp_path):
        b = write(tmp_path / "k.nc", make_tree(), corpus_sha256="d")
        done = run("compare", files[0], b, "--tolerance", "1")
        assert done.exit_code == 0
        assert "Note: The corpora differ" in done.stdout
        assert "independent errors" in done.stdout

    def test_a_reader_learns_what_is_left_out(self, run, files, tmp_path):
        other = make_tree()
        other["embedding_whitening"][...] *= 2
        b = write(tmp_path / "k.nc", other, model_sha256="k")
        done = run("compare", files[0], b)
        assert "Only what does not depend on the basis is compared" in done.stdout
        assert "‖ΔḠ‖" not in done.stdout
        assert "∠" not in done.stdout
        assert "relative difference of σ₁, lstm0" in done.stdout

    @pytest.mark.parametrize("suffix", MAGIC)
    def test_figure(self, run, files, tmp_path, suffix):
        path = tmp_path / f"f.{suffix}"
        done = run("compare", *files, "-o", path, "--tolerance", "0.01")
        assert done.exit_code == 1
        assert done.stdout.endswith(f"Written to {path}.\n")
        assert path.read_bytes().startswith(MAGIC[suffix])

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--match", "lstm0.h"], "--match expects STATE_OF_A=STATE_OF_B"),
            (["--match", "x=lstm0.h"], "A has no state 'x'"),
            (["--match", "lstm0.h=x"], "B has no state 'x'"),
            (["--match", "lstm0.h=lstm0.h", "--match", "lstm0.h=lstm0.c"], "twice"),
            (["--match", "lstm0.h=lstm0.c", "--match", "lstm0.c=lstm0.c"], "Two states of A"),
            (["--state", "x"], "A has no state 'x'"),
            (["--group", "verb"], "A has no group 'verb'"),
            (["--tolerance", "-1"], "Invalid value for '--tolerance'"),
            (["--tolerance", "nan"], "not a finite number"),
            (["--tolerance", "inf"], "not a finite number"),
            (["--corpus", "c.txt"], "--corpus: only models are analysed"),
            (["--delays", "5"], "--delays: only models are analysed"),
            (["-o", "f.gif"], "must end in .png"),
        ],
    )
    def test_wrong_calls(self, run, files, options, said):
        done = run("compare", *files, *options)
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stdout == ""

    def test_wrong_files(self, run, files, tmp_path):
        (tmp_path / "x.nc").write_text("hello")
        (tmp_path / "x.onnx").write_text("hello")
        for name, said in [
            ("missing.nc", "missing.nc does not exist. Check the path."),
            ("x.nc", "is no netCDF-4 file"),
            ("x.onnx", "is not an ONNX model"),
            (".", "is not a file"),
        ]:
            for pair in [(tmp_path / name, files[1]), (files[0], tmp_path / name)]:
                done = run("compare", *pair)
                assert done.exit_code == 2, name
                assert said in done.stderr

    def test_no_state_in_common(self, run, files, tmp_path):
        b = write(tmp_path / "k.nc", make_tree(states=("h",)))
        done = run("compare", files[0], b)
        assert done.exit_code == 2
        assert "A has no partner in B: A has lstm0.h, lstm0.c; B has h." in done.stderr

    def test_a_tolerance_needs_numbers(self, run, tmp_path):
        empty = make_tree()
        for node in empty.children.values():
            for name in node.data_vars:
                node[name][...] = 0 if "count" in name else np.nan
        path = write(tmp_path / "e.nc", empty)
        done = run("compare", path, path)
        assert done.exit_code == 0
        assert "Nothing could be compared" in done.stdout
        assert not re.search(r"\b(nan|inf)\b", done.stdout)
        done = run("compare", path, path, "--tolerance", "1")
        assert done.exit_code == 2
        assert "cannot be held against a tolerance" in done.stderr


class TestModels:
    def test_a_model_with_itself(self, run, model, corpus):
        done = run("compare", model, model, "--corpus", corpus, "--delays", "4", "--provider",
                   "cpu", "--tolerance", "0")  # fmt: skip
        assert done.exit_code == 0
        assert "paired (same positions)" in done.stdout

    def test_another_model(self, run, model, corpus, tmp_path):
        other = models.save(models.flat(seed=3), tmp_path / "n.onnx")
        done = run("compare", model, other, "--corpus", corpus, "--delays", "4", "--json",
                   "--tolerance", "1e-4", "-q")  # fmt: skip
        assert done.exit_code == 1
        data = json.loads(done.stdout)
        assert not data["same_embedding_space"]
        assert data["states"][0]["measure"] == "sigma1"

    def test_a_model_is_analysed_as_the_result_was(self, run, model, corpus, tmp_path):
        path = str(tmp_path / "r.nc")
        run("analyze", model, corpus, "-o", path, "--delays", "3", "--positions", "120", "--seed",
            "4", "--precision", "float64", "--provider", "cpu", "-q")  # fmt: skip
        for pair in [(model, path), (path, model)]:
            done = run("compare", *pair, "--corpus", corpus, "--provider", "cpu", "--json",
                       "--tolerance", "0", "-q")  # fmt: skip
            assert done.exit_code == 0, done.output
            data = json.loads(done.stdout)
            assert data["states"][0]["paired"]
            for side in "ab":
                attributes = data[side]["attributes"]
                assert (attributes["seed"], attributes["precision"]) == (4, "float64")
                assert attributes["positions"] == 120

    def test_what_is_given_here_goes_before(self, run, model, corpus, tmp_path):
        path = str(tmp_path / "r.nc")
        run("analyze", model, corpus, "-o", path, "--delays", "3", "--provider", "cpu", "-q")
        done = run("compare", model, path, "--corpus", corpus, "--method", "fd", "--json",
                   "--tolerance", "5e-3", "-q")  # fmt: skip
        data = json.loads(done.stdout)
        assert data["a"]["attributes"]["method"] == "fd"
        assert data["b"]["attributes"]["method"] == "jvp"
        assert data["states"][0]["first_difference"] is None
        assert done.exit_code == 0
        # A result of differences, with its own step, against exact derivatives.
        fd = str(tmp_path / "fd.nc")
        run("analyze", model, corpus, "-o", fd, "--delays", "3", "--method", "fd", "--step",
            "0.01", "-q")  # fmt: skip
        done = run("compare", model, fd, "--corpus", corpus, "--method", "jvp", "-q")
        assert done.exit_code == 0, done.stderr

    def test_another_corpus_is_said(self, run, model, corpus, tmp_path):
        path = str(tmp_path / "r.nc")
        run("analyze", model, corpus, "-o", path, "--delays", "3", "-q")
        other = tmp_path / "d.txt"
        other.write_text("w1 w2 w3\n" * 40, encoding="utf-8")
        done = run("compare", model, path, "--corpus", other)
        assert done.exit_code == 0
        assert "The corpora differ" in done.stdout

    def test_only_matched_states_are_analysed(self, run, corpus, tmp_path):
        lstm = models.save(models.fused(layers=1), tmp_path / "l.onnx")
        gru = models.save(models.fused("GRU", layers=1), tmp_path / "g.onnx")
        done = run("compare", lstm, gru, "--corpus", corpus, "--delays", "3", "--match",
                   "lstm0.h=gru0.h")  # fmt: skip
        assert done.exit_code == 0
        assert "lstm0.h = gru0.h" in done.stdout
        assert "A alone has lstm0.c; not compared." in done.stdout

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ([], "must be analysed first: name the text with --corpus"),
            (["--corpus", "-"], "Two models cannot both read standard input"),
            (["--corpus", "no.txt"], "There is no corpus file no.txt"),
            (["--corpus", "c.txt", "--group", "verb"], "with the group 'all' only"),
            (["--corpus", "c.txt", "--step", "0.1"], "add --method fd"),
        ],
    )
    def test_wrong_calls(self, run, model, corpus, monkeypatch, tmp_path, options, said):
        monkeypatch.chdir(tmp_path)
        done = run("compare", model, model, *options)
        assert done.exit_code == 2
        assert said in done.stderr

    def test_a_model_without_roles(self, run, model, corpus, tmp_path):
        import onnx

        plain = onnx.load(model)
        del plain.metadata_props[:]
        path = models.save(plain, tmp_path / "p.onnx")
        assert run("compare", path, model, "--corpus", corpus).exit_code == 2

    def test_progress_names_the_model(self, run, model, corpus):
        done = run("compare", model, model, "--corpus", corpus, "--delays", "2")
        assert f"Analysing {model}." in done.stderr


def test_inputs_are_left_alone(run, files):
    before = [Path(f).read_bytes() for f in files]
    run("compare", *files)
    assert before == [Path(f).read_bytes() for f in files]
    assert open_result(files[0]) is not None
