"""Classes of input words, from the corpus on the command line to tables and figures."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from mnemoscope.analyzer.result import build, open_result, save_result
from mnemoscope.analyzer.sums import Sums

ROOT = Path(__file__).resolve().parents[2]
DELAYS, UNITS, SIZE, BLOCKS = 4, 6, 3, 5
NAMES = ["all", "strong", "weak", "rare", "lost [b] $x$"]


def planted(seed: int = 0) -> Sums:
    """Block sums of five classes: one clear, one below its noise, one in one block, one nowhere."""
    rng = np.random.default_rng(seed)
    signal = np.array([1.0, 2.0, 0.0, 1.5, 0.0])[:, None, None, None]
    common = signal * np.exp(-np.arange(DELAYS))[:, None, None] * rng.standard_normal((UNITS, SIZE))
    counts = np.broadcast_to(np.array([90, 40, 40, 0, 0])[:, None], (BLOCKS, 5, DELAYS)).copy()
    counts[2, 3] = 1
    counts[..., -1] -= counts[..., -1] > 1
    n = counts[..., None, None] / 2
    noise = 0.3 * np.sqrt(n) * rng.standard_normal((2, BLOCKS, 5, DELAYS, UNITS, SIZE))
    noise[1, :, 2] = -0.9 * noise[0, :, 2]  # the halves of the weak one nearly cancel
    halves = n * common + noise
    return Sums(halves.sum(0), counts, halves[0].sum(0), counts.sum(0) // 2)


def make(states=("h", "c"), groups=NAMES):
    rng = np.random.default_rng(1)
    return build(
        {name: planted(i) for i, name in enumerate(states)},
        groups=groups,
        embeddings=rng.standard_normal((20, SIZE)),
        state_info={},
        attributes={"model": "m.onnx", "corpus": "c.conllu"},
    )


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("r") / "r.nc"
    save_result(make(), path)
    return path


class TestSums:
    """Σσ, its error and its floor, against numpy."""

    def test_they_follow_from_the_sums(self):
        s, tree = planted(), make()
        root = tree["embedding_whitening"].values

        def whole(matrix):
            return np.linalg.svd(matrix, compute_uv=False).sum()

        for d in range(DELAYS):
            for g in range(3):
                counts, sums = s.block_count[:, g, d], s.block_sum[:, g, d]
                mean = sums.sum(0) / counts.sum()
                n = s.half_count[g, d]
                half = (s.half_sum[g, d] / n
                        - (sums.sum(0) - s.half_sum[g, d]) / (counts.sum() - n)) / 2  # fmt: skip
                # The blocks are of one size, for which the jackknife is the textbook's.
                left = [
                    (sums.sum(0) - x) / (counts.sum() - c)
                    for x, c in zip(sums, counts, strict=True)
                ]
                for i, m in enumerate((np.eye(SIZE), root)):
                    at = {"normalization": i, "group": g, "delay": d}
                    node = tree["h"]
                    each = np.array([whole(x @ m) for x in left])
                    error = np.sqrt((BLOCKS - 1) / BLOCKS * ((each - each.mean()) ** 2).sum())
                    for name, wanted in (("", whole(mean @ m)), ("_stderr", error),
                                         ("_floor", whole(half @ m))):  # fmt: skip
                        found = float(node[f"singular_value_sum{name}"][at])
                        assert found == pytest.approx(wanted, rel=1e-10), (name, g, d)

    def test_a_class_nowhere_is_not_a_number(self):
        node = make()["h"]
        for end in ("", "_stderr", "_floor"):
            assert np.isnan(node[f"singular_value_sum{end}"][:, 4]).all()


class TestShow:
    def test_table(self, run, classes):
        done = run("show", classes, "--state", "c")
        assert done.exit_code == 0
        lines = done.stdout.splitlines()
        assert "c · classes of inputs · whitened" in lines
        assert "h · classes" not in done.stdout
        rows = [[c.strip() for c in x.split("│")[1:-1]] for x in lines if x.startswith("│")]
        assert [r[0] for r in rows] == ["strong", "rare", "all", "weak", "lost [b] $x$"]
        by = {r[0]: r for r in rows}
        assert by["strong"][1] == "200"
        assert by["all"][1] == "450"
        assert by["strong"][3] == by["all"][3] == ""
        assert by["weak"][3] == by["weak"][6] == "*"
        assert by["rare"][3] == by["lost [b] $x$"][3] == "?"
        node = open_result(classes)["c"]
        at = {"normalization": 1, "group": 1}
        found = {name: float(v[at][d] if v.ndim == 3 else v[at][d, 0]) for name, d, v in (
            ("σ", 0, node["singular_values"]), ("±σ", 0, node["singular_values_stderr"]),
            ("Σ", -1, node["singular_value_sum"]), ("±Σ", -1, node["singular_value_sum_stderr"]),
            ("floor", -1, node["singular_value_sum_floor"]))}  # fmt: skip
        assert by["strong"][2] == f"{found['σ']:.3e} ± {found['±σ']:.0e}"
        assert by["strong"][5] == f"{found['Σ']:.3e} ± {found['±Σ']:.0e}"
        assert by["strong"][7] == f"{found['floor']:.1e}"
        assert "? too few positions" in done.stdout
        assert "--group NAME" in done.stdout

    @pytest.mark.parametrize(
        ("order", "first"), [("name", "all"), ("count", "all"), ("result", "all")]
    )
    def test_sort(self, run, classes, order, first):
        rows = json.loads(run("show", classes, "--sort", order, "--json").stdout)["classes"][0][
            "rows"
        ]
        names = [r["group"] for r in rows]
        assert sorted(names) == sorted(NAMES)
        assert names[0] == first
        wanted = {"name": sorted(NAMES), "result": NAMES}.get(order)
        assert wanted is None or names == wanted
        if order == "count":
            assert [r["count"] for r in rows] == sorted((r["count"] for r in rows), reverse=True)

    def test_sums_descend_and_nothing_comes_last(self, run, classes):
        rows = json.loads(run("show", classes, "--sort", "sum", "--json").stdout)["classes"][1][
            "rows"
        ]
        assert rows[-1]["sum"] is None
        sums = [r["sum"] for r in rows[:-1]]
        assert sums == sorted(sums, reverse=True)

    def test_json_and_csv(self, run, classes):
        data = json.loads(run("show", classes, "--json").stdout, parse_constant=pytest.fail)
        assert [t["state"] for t in data["classes"]] == ["h", "c"]
        assert data["classes"][0]["last_delay"] == DELAYS - 1
        row = next(r for r in data["classes"][0]["rows"] if r["group"] == "strong")
        assert row["sigma1_clear"] is True
        assert (row["count"], row["last_count"]) == (200, 195)
        rows = list(csv.DictReader(io.StringIO(run("show", classes, "--csv").stdout)))
        assert len(rows) == 10
        assert float(rows[0]["sigma1"]) > float(rows[0]["sigma1_floor"])

    def test_the_curve_of_one_class(self, run, classes):
        done = run("show", classes, "--group", "weak", "--state", "c")
        assert "c · inputs: weak · whitened" in done.stdout

    def test_a_single_class_has_its_curve(self, run, tmp_path):
        tree = make(("h",)).isel(group=[0])
        save_result(tree, tmp_path / "one.nc")
        assert "h · inputs: all · whitened" in run("show", tmp_path / "one.nc").stdout

    def test_a_file_of_an_earlier_version(self, run, tmp_path):
        tree = make(("h",))
        old = tree["h"].to_dataset(inherit=False)
        old = old.drop_vars([v for v in old.data_vars if v.startswith("singular_value_sum")])
        tree["h"] = type(tree)(old)
        save_result(tree, tmp_path / "old.nc")
        done = run("show", tmp_path / "old.nc")
        assert "o the file, of an earlier version, has no standard error" in done.stdout
        assert run("plot", tmp_path / "old.nc", "--kind", "classes", "-o",
                   tmp_path / "f.png").exit_code == 0  # fmt: skip

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--group", "x"], "The result has no group 'x'; it has all, strong"),
            (["--group", "weak", "--sort", "sum"], "--sort sorts classes"),
            (["--sort", "size"], "Invalid value for '--sort'"),
            (["--state", "x"], "The result has no state 'x'"),
        ],
    )
    def test_refusals(self, run, classes, options, said):
        done = run("show", classes, *options)
        assert done.exit_code == 2
        assert said in done.stderr


class TestPlot:
    @pytest.mark.parametrize(
        "options",
        [
            [],
            ["--state", "c", "--sort", "sum", "--title", "A $title$"],
            ["--normalization", "none", "--group", "weak", "--group", "strong"],
        ],
    )
    def test_classes(self, run, classes, tmp_path, options):
        done = run("plot", classes, "--kind", "classes", "-o", tmp_path / "f.svg", *options)
        assert (done.exit_code, done.output) == (0, f"Written to {tmp_path / 'f.svg'}.\n")
        text = (tmp_path / "f.svg").read_text(encoding="utf-8")
        assert "<!-- weak -->" in text
        assert ("<!-- rare -->" in text) == ("--group" not in options)

    def test_two_results(self, run, classes, tmp_path):
        other = tmp_path / "o.nc"
        save_result(make(("h", "c"), [*NAMES[:4], "another"]), other)
        done = run("plot", classes, other, "--kind", "classes", "-o", tmp_path / "f.svg",
                   "--label", "one", "--label", "two")  # fmt: skip
        assert done.exit_code == 0
        text = (tmp_path / "f.svg").read_text(encoding="utf-8")
        for name in ("one", "two", "another"):
            assert f"<!-- {name} -->" in text

    def test_hollow_marks_and_floors(self):
        from mnemoscope.analyzer.classes import class_tables
        from mnemoscope.analyzer.plots import classes_figure

        (table,) = class_tables(make(("h",)), order="result")
        left, right = classes_figure([("one", table)]).axes
        assert [t.get_text() for t in left.get_yticklabels()] == [
            *NAMES[:4], r"lost [b] \$x\$"
        ]  # fmt: skip
        assert left.get_ylim()[0] > left.get_ylim()[1]  # the first is on top
        for axes, measure in ((left, "sigma1"), (right, "sum")):
            marks = [c.lines[0] for c in axes.containers]
            assert len(marks) == 4  # a class nowhere has no mark
            assert [m.get_ydata()[0] for m in marks] == [0, 1, 2, 3]
            hollow = [m.get_markerfacecolor() == "none" for m in marks]
            assert hollow == [not getattr(r, f"{measure}_clear") for r in table.rows[:4]]
            assert hollow[1:] == [False, True, True]
            drawn = [x.get_xdata()[0] for x in axes.lines if len(x.get_xdata()) == 2]
            floors = [getattr(r, f"{measure}_floor") for r in table.rows]
            assert drawn == [f for f in floors if np.isfinite(f)]
            assert [m.get_xdata()[0] for m in marks] == [
                getattr(r, measure) for r in table.rows[:4]
            ]

    def test_curves_of_several_classes(self, run, classes, tmp_path):
        done = run("plot", classes, "--group", "strong", "--group", "weak", "--state", "c", "-o",
                   tmp_path / "f.svg")  # fmt: skip
        assert done.exit_code == 0
        text = (tmp_path / "f.svg").read_text(encoding="utf-8")
        assert "<!-- c · strong -->" in text
        assert "<!-- c · weak -->" in text

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--sort", "sum"], "--sort sorts classes; add --kind classes"),
            (["--kind", "classes", "--group", "x"], "The result has no group 'x'"),
            (["--group", "weak", "--group", "x"], "The result has no group 'x'"),
            (["--kind", "bars"], "Invalid value for '--kind'"),
        ],
    )
    def test_refusals_leave_no_file(self, run, classes, tmp_path, options, said):
        done = run("plot", classes, "-o", tmp_path / "f.png", *options)
        assert done.exit_code == 2
        assert said in done.stderr
        assert not (tmp_path / "f.png").exists()

    def test_too_many_classes(self, run, tmp_path):
        tree = make(("h",)).isel(group=np.arange(85) % 5)
        many = tree.map_over_datasets(
            lambda d: d.assign_coords(group=[f"g{i}" for i in range(85)]) if d.dims else d
        )
        save_result(many, tmp_path / "many.nc")
        done = run("plot", tmp_path / "many.nc", "--kind", "classes", "-o", tmp_path / "f.png")
        assert done.exit_code == 2
        assert "has 85 classes, and a figure shows 80 at most" in done.stderr


TREE = """\
# text = w1 w2 w3
1\tw1\tw1\tDET\tDT\tNumber=Sing\t0\troot\t_\t_
2\tw2\tw2\tNOUN\tNN\tNumber=Plur\t1\tx\t_\t_
3\tzebra\tw3\tNOUN\tNNS\tNumber=Sing\t1\tx\t_\t_
4\tw4\tw4\tVERB\t_\t_\t1\tx\t_\t_

"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    models.save(models.fused(layers=1), tmp_path / "m.onnx")
    (tmp_path / "t.conllu").write_text(TREE * 12)
    (tmp_path / "g.toml").write_text('nouns = ["NN", "NNS"]\nboth = ["NN", "DT"]\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


ANALYZE = ("analyze", "m.onnx", "t.conllu", "-o", "r.nc", "--delays", "3")


class TestAnalyze:
    def test_all_the_way(self, run, folder):
        done = run(*ANALYZE, "--group-by", "xpos", "--groups", "g.toml")
        assert done.exit_code == 0, done.stderr
        assert "12 of 60 tokens (20.0%) are unknown to the model." in done.stderr
        assert "Memory: about" in done.stderr
        lines = done.stdout.splitlines()
        assert lines[2].startswith("2 classes; by lstm0.c at delay 0, from most to least: ")
        tree = open_result("r.nc")
        assert tree["group"].values.tolist() == ["all", "nouns", "both"]
        assert tree["lstm0.c"]["count"].values[:, 0].tolist() == [60, 24, 24]
        assert tree["lstm0.c"]["count"].values[:, 3].tolist() == [57, 23, 24]
        assert tree.attrs["group_by"] == "xpos"
        assert json.loads(tree.attrs["unions"]) == {"nouns": ["NN", "NNS"], "both": ["NN", "DT"]}
        assert run("show", "r.nc").exit_code == 0
        assert run("plot", "r.nc", "--kind", "classes", "-o", "f.png").exit_code == 0

    def test_classes_that_the_sample_lacks(self, run, folder):
        done = run(*ANALYZE, "--group-by", "word", "--positions", "3")
        assert done.exit_code == 0, done.stderr
        (line,) = [x for x in done.stderr.splitlines() if "The sample of 3 positions" in x]
        assert "; left out. Follow more" in line
        tree = open_result("r.nc")
        words = tree["group"].values.tolist()
        assert (tree["lstm0.c"]["count"].values[:, 0] > 0).all()
        assert words[0] == "all"
        assert 1 < len(words) <= 4
        assert not set(words) & set(re.split(r", | of |; ", line))
        assert run("show", "r.nc").exit_code == 0

    def test_a_sample_without_any_class(self, run, folder):
        """One position has one tag, so of the unions that lack it nothing is left."""
        before, codes = sorted(p.name for p in folder.iterdir()), []
        for tag in ("DT", "NN", "NNS"):
            (folder / "g.toml").write_text(f'u = ["{tag}"]\n')
            done = run(*ANALYZE, "--group-by", "xpos", "--groups", "g.toml", "--positions", "1")
            codes.append(done.exit_code)
            if done.exit_code:
                assert "The sample of 1 positions holds none of u: no class is left." in done.stderr
                assert sorted(p.name for p in folder.iterdir()) == before
            else:
                (folder / "r.nc").unlink()
        assert sorted(codes)[-2:] == [2, 2]

    def test_quiet(self, run, folder):
        (folder / "g.toml").write_text('nouns = ["NN", "XX"]\n')
        done = run(*ANALYZE, "--group-by", "xpos", "--groups", "g.toml", "-q")
        assert (done.exit_code, done.output) == (0, "")

    def test_without_classes(self, run, folder):
        assert run(*ANALYZE).exit_code == 0
        tree = open_result("r.nc")
        assert tree["group"].values.tolist() == ["all"]
        assert "group_by" not in tree.attrs

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--groups", "g.toml"], "say which with --group-by"),
            (["--group-by", "label"], "has no column label; it has upos, xpos, lemma, word"),
            (["--group-by", "feature:Case"], "has the feature 'Case'; there are Number"),
            (["--group-by", "tags.tsv"], "is neither a column"),
            (["--group-by", "xpos", "--groups", "no.toml"], "There is no groups file no.toml"),
            (["--group-by", "upos", "--groups", "g.toml"],
             "The group nouns would be empty: no word of the corpus has the class NN, NNS in upos, "
             "which has DET, NOUN, VERB"),
            (["--group-by", "g.toml"], "The lexicon g.toml, line 1: expected a word, a tab"),
        ],
    )  # fmt: skip
    def test_refusals_write_nothing(self, run, folder, options, said):
        before = sorted(p.name for p in folder.iterdir())
        done = run(*ANALYZE, *options)
        assert done.exit_code == 2
        assert said in done.stderr
        assert done.stderr.count("Error: ") == 1
        assert sorted(p.name for p in folder.iterdir()) == before

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("t.conllu", TREE.replace("2\tw2", "3\tw2"), "line 3: the id 3 is out of order"),
            ("t.conllu", TREE.removesuffix("\n"), "line 5: the file ends inside a sentence"),
            ("t.conllu", TREE.replace("\t", " "), "line 2: expected 10 columns"),
            ("t.conllu", "", "is empty"),
            ("t.tsv", "w1 A\n", "line 1: expected a word, a tab and its classes"),
            ("t.conllu", "w1 w2\n" * 20, "line 1: expected 10 columns"),
        ],
    )
    def test_bad_corpora_write_nothing(self, run, folder, name, content, said):
        (folder / name).write_text(content)
        before = sorted(p.name for p in folder.iterdir())
        done = run("analyze", "m.onnx", name, "-o", "r.nc", "--delays", "3", "--group-by", "upos")
        assert done.exit_code == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert sorted(p.name for p in folder.iterdir()) == before

    @pytest.mark.parametrize("output", ["t.conllu", "g.toml", "tags.tsv"])
    def test_inputs_are_not_replaced(self, run, folder, output):
        (folder / "tags.tsv").write_text("w1\tx\n")
        done = run("analyze", "m.onnx", "t.conllu", "-o", output, "--group-by", "tags.tsv",
                   "--groups", "g.toml")  # fmt: skip
        assert done.exit_code == 2
        assert "is also an input" in done.stderr


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_the_means_are_those_of_single_positions(run, tmp_path):
    """Against torch.func, position by position, over a hand-written step."""
    torch = pytest.importorskip("torch", reason="the oracle is torch.func")
    sys.modules.pop("oracle", None)
    import oracle
    from mnemoscope.exporters import pytorch

    delays, case = 6, oracle.CASES[0]
    module = oracle.build(case)
    words = [*(f"w{i}" for i in range(oracle.V - 2)), "<unk>", "<eos>"]
    pytorch.export(module, tmp_path / "m.onnx", vocabulary=words)
    rng = np.random.default_rng(2)
    text, ids, tags = [], [], []
    for _ in range(12):
        for i in range(1, 8):
            word, tag = int(rng.integers(0, oracle.V - 1)), str(rng.choice(["NN", "VB", "DT", "_"]))
            spelled = "zebra" if words[word] == "<unk>" else words[word]
            text.append("\t".join([str(i), spelled, "_", "_", tag, *"_0___"]))
            ids.append(word)
            tags.append(tag)
        text.append("")
        ids.append(oracle.V - 1)
        tags.append("_")
    (tmp_path / "t.conllu").write_text("\n".join([*text, ""]))
    (tmp_path / "g.toml").write_text('n = ["NN"]\nnv = ["NN", "VB"]\n')
    done = run("analyze", tmp_path / "m.onnx", tmp_path / "t.conllu", "-o", tmp_path / "r.nc",
               "--group-by", "xpos", "--groups", tmp_path / "g.toml", "--delays", delays,
               "--precision", "float64")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    tree = open_result(tmp_path / "r.nc")
    assert tree["group"].values.tolist() == ["all", "n", "nv"]
    table = module.embedding.weight.detach().double().numpy()
    root = np.linalg.cholesky(np.cov(table.T, bias=True))
    for state, each in oracle.gradients(case, module, torch.tensor(ids), delays).items():
        for g, members in enumerate((set(tags), {"NN"}, {"NN", "VB"})):
            for d in range(delays + 1):
                where = [i for i in range(len(ids) - d) if tags[i] in members]
                mean = each[where, d].mean(0).numpy()
                node = tree[state].isel(group=g, delay=d)
                assert int(node["count"]) == len(where)
                np.testing.assert_allclose(node["gradient"], mean, rtol=0, atol=1e-12)
                values = np.linalg.svd(mean @ root, compute_uv=False)
                np.testing.assert_allclose(node["singular_values"][1], values, rtol=1e-9)
                assert float(node["singular_value_sum"][1]) == pytest.approx(
                    values.sum(), rel=1e-10
                )
    # The classes differ by far more than the tolerance: this can fail.
    cell = tree["lstm0.c"]["gradient"].values
    assert np.abs(cell[0] - cell[1]).max() > 1e-3
    assert np.abs(cell[2] - cell[1]).max() > 1e-3


@pytest.mark.skipif(os.name != "posix", reason="the commands of the page are a shell's")
def test_the_commands_of_the_documentation_run(run, tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "groups.md"
    if not page.exists():
        pytest.skip("the documentation is not beside the tests")
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).replace("\\\n", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    # The shell writes the files; the commands run in this process.
    subprocess.run(["bash", "-c", f"set -e\nmnemoscope() {{ :; }}\n{shell}"], check=True)
    commands = [shlex.split(x)[1:] for x in shell.splitlines() if x.startswith("mnemoscope ")]
    assert sum(words[0] == "analyze" for words in commands) == 5
    for words in commands:
        if "--positions" in words:  # all of a short text, at few delays
            at = words.index("--positions")
            words[at : at + 2] = ["--delays", "1"]
        done = run(*words)
        assert done.exit_code == 0, done.stderr
        if words[0] == "corpus":
            lines = Path("corpus.txt").read_text(encoding="utf-8").splitlines()
            Path("corpus.txt").write_text("\n".join(lines[:250]), encoding="utf-8")
        if "lexicon.tsv" in words:
            assert "7 classes; by lstm0.c at delay 0" in done.stdout
    for name in ("classes.png", "curves.png", "tiny.nc", "number.nc", "labels.nc", "words.nc"):
        assert (tmp_path / name).exists(), name
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    capsys.readouterr()
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) == 3
