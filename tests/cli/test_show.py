from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from mnemoscope.analyzer.result import save_result


def test_table(run, result_file, tree):
    done = run("show", result_file, "--state", "lstm0.c")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "model m.onnx, corpus c.txt, positions 200, method jvp"
    assert "lstm0.c · inputs: all · whitened" in lines
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [int(r[0]) for r in rows] == list(range(6))
    values = tree["lstm0.c"]["singular_values"].sel(normalization="whitened", group="all")[:, 0]
    floors = tree["lstm0.c"]["noise_floor"].sel(normalization="whitened", group="all")
    np.testing.assert_allclose([float(r[1].split("±")[0]) for r in rows], values, rtol=1e-3)
    below = values.values <= floors.values
    assert ["*" in r[2] for r in rows] == below.tolist()
    assert below.any()
    errors = tree["lstm0.c"]["singular_values_stderr"].sel(normalization="whitened", group="all")
    first = int(np.argmax(~(values > floors + 2 * errors[:, 0]).values))
    assert f"lstm0.c: first not clear of its noise floor at delay {first}." in done.stdout
    assert "* σ₁ does not exceed its noise floor" in done.stdout
    assert "Whitening: condition number" in lines[-1]
    assert "rank 4." in lines[-1]
    assert "lstm0.h" not in done.stdout


def test_without_whitening_nothing_is_said_of_it(run, result_file):
    done = run("show", result_file, "--normalization", "none")
    assert "Whitening" not in done.stdout
    assert done.stdout.count("not whitened") == 2


def test_json(run, result_file, tree):
    data = json.loads(run("show", result_file, "--json").stdout)
    assert [c["state"] for c in data["curves"]] == ["lstm0.h", "lstm0.c"]
    row = data["curves"][1]["rows"][2]
    expected = tree["lstm0.c"]["singular_values"].sel(normalization="whitened", group="all")
    assert row["sigma1"] == float(expected[2, 0])
    assert row["below_noise"] in (True, False)
    assert data["attributes"]["method"] == "jvp"
    assert data["whitening"]["rank"] == 4


def test_csv(run, result_file):
    text = run("show", result_file, "--csv", "--normalization", "none").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 12
    assert rows[0]["state"] == "lstm0.h"
    assert {r["normalization"] for r in rows} == {"none"}
    assert float(rows[0]["sigma1"]) > float(rows[0]["noise_floor"])


def test_nan_is_null_and_empty(run, tree, tmp_path):
    tree["lstm0.c"]["singular_values"][:, :, 5] = np.nan
    save_result(tree, tmp_path / "n.nc")
    data = json.loads(run("show", tmp_path / "n.nc", "--json").stdout, parse_constant=pytest.fail)
    assert data["curves"][1]["rows"][5]["sigma1"] is None
    assert "nan" not in run("show", tmp_path / "n.nc", "--csv").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--state", "gru"], "The result has no state 'gru'; it has lstm0.h, lstm0.c."),
        (["--group", "verb"], "The result has no group 'verb'; it has all."),
        (["--normalization", "z"], "Invalid value for '--normalization'"),
        (["--json", "--csv"], "--json and --csv exclude each other"),
    ],
)
def test_wrong_choice(run, result_file, options, said):
    done = run("show", result_file, *options)
    assert done.exit_code == 2
    assert said in done.stderr


def test_not_a_result(run, tmp_path):
    path = tmp_path / "x.nc"
    path.write_text("hello")
    done = run("show", path)
    assert done.exit_code == 2
    assert done.stderr == (
        f"Error: Expected a result file, as mnemoscope analyze writes it; {path} is no netCDF-4 "
        "file.\n"
    )


def test_attributes_of_a_file_cannot_steer_a_terminal(run, tree, tmp_path):
    tree.attrs["corpus"] = "c\x1b[31m\n::error::x"
    save_result(tree, tmp_path / "h.nc")
    done = run("show", tmp_path / "h.nc")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == (
        r"model m.onnx, corpus c\x1b[31m\n::error::x, positions 200, method jvp"
    )
