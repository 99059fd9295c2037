from __future__ import annotations

import pytest

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", MAGIC)
def test_formats(run, result_file, tmp_path, suffix):
    path = tmp_path / f"f.{suffix}"
    done = run("plot", result_file, result_file, "-o", path, "--title", "A title")
    assert (done.exit_code, done.output) == (0, f"Written to {path}.\n")
    assert path.read_bytes().startswith(MAGIC[suffix])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"f.{suffix}", "r.nc"]


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("f.gif", [], "must end in .png or .svg or .pdf"),
        ("f.png", ["--label", "a", "--label", "b"], "1 result(s) need as many --label options"),
        ("f.png", ["--state", "x"], "no state 'x'; it has lstm0.h, lstm0.c"),
        ("no/f.png", [], "there is no folder"),
    ],
)
def test_refusals_leave_no_file(run, result_file, tmp_path, output, options, said):
    done = run("plot", result_file, "-o", tmp_path / output, *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_labels(run, result_file, tmp_path):
    svg = tmp_path / "f.svg"
    run("plot", result_file, result_file, "-o", svg, "--label", "old", "--label", "new",
        "--state", "lstm0.c")  # fmt: skip
    text = svg.read_text(encoding="utf-8")
    assert "<!-- old -->" in text
    assert "<!-- new -->" in text


def test_needs_a_result(run, tmp_path):
    assert run("plot", "-o", tmp_path / "f.png").exit_code == 2
