from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import models
import numpy as np
import pytest
import xarray as xr
from mnemoscope.analyzer import check, read_budget
from mnemoscope.analyzer.result import save_result
from mnemoscope.cli._junit import write_junit
from mnemoscope.cli.check import github_annotations

ROOT = Path(__file__).parent.parent.parent
PASS = "[[sigma1]]\ndelay = 0\nat_least = 1e-6\n"
FAIL = "[[sigma1]]\ndelay = 0\nat_least = 1e6\n"


@pytest.fixture
def write(tmp_path):
    def make(text, name="budget.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return make


@pytest.fixture
def undecided(tree):
    """A bound on the very value of lstm0.c at delay 0."""
    return f'[[sigma1]]\nstate = "lstm0.c"\ndelay = 0\nat_least = {value(tree, 0)!r}\n'


def value(tree, delay, state="lstm0.c"):
    values = tree[state]["singular_values"].sel(normalization="whitened", group="all")
    return float(values[delay, 0])


# --- exit status and forms ---


def test_passed(run, result_file, write):
    done = run("check", result_file, "--budget", write(PASS))
    assert done.exit_code == 0
    assert len(re.findall(r"│ passed +│", done.stdout)) == 2
    assert done.stdout.endswith("2 passed.\n")


def test_failed(run, result_file, write):
    done = run("check", result_file, "--budget", write(PASS + FAIL))
    assert done.exit_code == 1
    assert done.stdout.endswith("2 passed, 2 failed.\n")
    assert "Error" not in done.stderr


def test_undecided_passes_unless_strict(run, result_file, write, undecided):
    asked = ["check", result_file, "--budget", write(undecided)]
    done = run(*asked)
    assert done.exit_code == 0
    assert done.stdout.endswith("1 undecided.\n")
    assert re.search(r"about [\d,]+ positions should decide it", done.stdout)
    assert run(*asked, "--strict").exit_code == 1


def test_json(run, result_file, write, undecided, tree):
    done = run("check", result_file, "--budget", write(PASS + FAIL + undecided), "--json")
    assert done.exit_code == 1
    data = json.loads(done.stdout)
    assert data["passed"] is False
    assert data["counts"] == {"passed": 2, "failed": 2, "undecided": 1}
    assert [v["status"] for v in data["verdicts"]] == [*["passed"] * 2, *["failed"] * 2,
                                                       "undecided"]  # fmt: skip
    last = data["verdicts"][-1]
    assert last["measured"] == value(tree, 0)
    assert last["line"] == 7
    assert last["table"] == "[[sigma1]] 3 (line 7)"
    assert last["positions_needed"] > 200
    assert data["verdicts"][0]["positions_needed"] is None


def test_json_has_no_nan(run, result_file, write):
    done = run("check", result_file, "--budget", write("[[horizon]]\nat_least = 5"), "--json")
    json.loads(done.stdout, parse_constant=pytest.fail)
    assert done.exit_code == 1


def test_the_python_twin_says_the_same(run, result_file, write, tree):
    path = write(PASS + FAIL)
    data = json.loads(run("check", result_file, "--budget", path, "--json").stdout)
    verdicts = check(tree, read_budget(path))
    assert [v.status for v in verdicts] == [v["status"] for v in data["verdicts"]]
    assert [v.found for v in verdicts] == [v["found"] for v in data["verdicts"]]


@pytest.mark.parametrize("strict", [False, True])
def test_junit(run, result_file, write, undecided, tmp_path, strict):
    names = '[[sigma1]]\nname = "a <b> & \\"c\\" ]]>"\ndelay = 0\nat_least = 1e6\n'
    path = tmp_path / "j.xml"
    options = ["--strict"] if strict else []
    budget = write(PASS + names + undecided)
    done = run("check", result_file, "--budget", budget, "--junit", path, *options)
    assert done.exit_code == 1
    root = ET.parse(path).getroot()
    check_junit(root)
    (suite,) = root
    assert len(suite) == 5
    kinds = [[child.tag for child in case] for case in suite]
    last = "failure" if strict else "skipped"
    assert kinds == [["system-out"], ["system-out"], ["failure"], ["failure"], [last]]
    assert 'a <b> & "c" ]]>' in suite[2].get("name")
    assert (root.get("failures"), root.get("skipped")) == (("3", "0") if strict else ("2", "1"))


def check_junit(root):
    """What the schemas in use agree on: elements, attributes, their types, and the counts."""
    allowed = {
        "testsuites": {"name", "tests", "failures", "errors", "skipped", "time"},
        "testsuite": {"name", "tests", "failures", "errors", "skipped", "time"},
        "testcase": {"name", "classname", "time"},
        "failure": {"message", "type"},
        "skipped": {"message"},
        "system-out": set(),
    }
    parents = {"testsuites": None, "testsuite": "testsuites", "testcase": "testsuite"}
    assert root.tag == "testsuites"
    for parent in root.iter():
        assert set(parent.attrib) <= allowed[parent.tag]
        for child in parent:
            assert parents.get(child.tag, "testcase") == parent.tag
    for node in (root, *root):
        cases = list(node.iter("testcase"))
        assert int(node.get("tests")) == len(cases)
        assert int(node.get("failures")) == len(list(node.iter("failure")))
        assert int(node.get("skipped")) == len(list(node.iter("skipped")))
        assert int(node.get("errors")) == 0
        assert float(node.get("time")) >= 0
        assert all(case.get("name") and case.get("classname") for case in cases)
    assert len({(c.get("classname"), c.get("name")) for c in root.iter("testcase")}) == len(
        list(root.iter("testcase"))
    )


def test_junit_holds_no_character_that_xml_has_not(tree, write, tmp_path):
    verdicts = [
        dataclasses.replace(v, state="a\x07\ud800b") for v in check(tree, read_budget(write(FAIL)))
    ]
    write_junit(tmp_path / "j.xml", verdicts[:1], "b\x1b", {"failed"}, 0.0)
    assert "a??b" in ET.parse(tmp_path / "j.xml").getroot()[0][0].get("name")


def test_a_junit_report_never_replaces_what_the_budget_names(run, result_file, write, tmp_path):
    reference = tmp_path / "fp32.nc"
    shutil.copy(result_file, reference)
    before = reference.read_bytes()
    budget = write('[[parity]]\nfile = "fp32.nc"\ntolerance = 1e-3\n')
    done = run("check", result_file, "--budget", budget, "--junit", reference)
    assert done.exit_code == 2
    assert "is also an input" in done.stderr
    assert reference.read_bytes() == before


@pytest.mark.parametrize("wrong", ["budget", "input"])
def test_no_earlier_junit_report_outlives_a_check_that_cannot_be_made(
    run, result_file, write, tmp_path, wrong
):
    path = tmp_path / "j.xml"
    assert run("check", result_file, "--budget", write(PASS), "--junit", path).exit_code == 0
    assert path.exists()
    budget = write("nonsense" if wrong == "budget" else PASS)
    checked = result_file if wrong == "budget" else write("hello", "x.nc")
    assert run("check", checked, "--budget", budget, "--junit", path).exit_code == 2
    assert not path.exists()


def test_a_junit_path_that_is_no_report_is_kept_until_there_is_one(run, result_file, write):
    notes = Path(write("notes", "notes.txt"))
    assert run("check", result_file, "--budget", write("x"), "--junit", notes).exit_code == 2
    assert notes.read_text() == "notes"


HOSTILE = "x\n::error title=pwned::hello\x1b[31m"


@pytest.mark.parametrize("what", ["state", "group"])
def test_a_result_with_names_that_a_terminal_would_obey_is_refused(
    run, tree, write, tmp_path, what
):
    if what == "state":
        tree[HOSTILE] = tree["lstm0.c"].copy()
    else:
        nodes = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
        nodes["/"] = nodes["/"].assign_coords(group=[HOSTILE])
        tree = xr.DataTree.from_dict(nodes)
    path = tmp_path / "h.nc"
    save_result(tree, path)
    done = run("check", path, "--budget", write(PASS))
    assert done.exit_code == 2
    assert f"a {what} named" in done.stderr
    assert "cannot be printed" in done.stderr
    assert "\x1b" not in done.output
    assert not re.search(r"^::", done.output, re.M)


def test_a_junit_report_with_wrong_counts_is_noticed(tree, write, tmp_path):
    verdicts = check(tree, read_budget(write(PASS)))
    write_junit(tmp_path / "j.xml", verdicts, "b", {"failed"}, 0.0)
    root = ET.parse(tmp_path / "j.xml").getroot()
    check_junit(root)
    root.set("tests", "3")
    with pytest.raises(AssertionError):
        check_junit(root)


def unescape(text):
    for code, character in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_github(run, result_file, write, undecided):
    path = write(PASS + FAIL + undecided)
    done = run("check", result_file, "--budget", path, "--github")
    lines = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert [line.split()[0] for line in lines] == ["::error", "::error", "::warning"]
    assert f"::error file={path.replace(':', '%3A')},line=4,title=lstm0.h%3A σ₁" in lines[0]
    done = run("check", result_file, "--budget", path, "--github", "--strict")
    assert done.stdout.count("::error") == 3
    assert "::warning" not in done.stdout


def test_github_names_are_escaped(tree, write):
    name = "100% sure:a, b::error file=x::y"
    path = write(f'[[sigma1]]\nname = "{name}"\nstate = "lstm0.c"\ndelay = 0\nat_least = 1e6\n',
                 "odd, 5%:name.toml")  # fmt: skip
    verdicts = [
        dataclasses.replace(v, state="s\n\r") for v in check(tree, read_budget(path))
    ]  # a budget and a result have no such names
    (line,) = github_annotations(verdicts, path, {"failed"})
    assert "\n" not in line
    assert "\r" not in line
    command, properties, _ = re.fullmatch(r"::(\w+) (.*?)::(.*)", line).groups()
    assert command == "error"
    found = dict(p.split("=", 1) for p in properties.split(","))
    assert unescape(found["file"]) == path
    assert found["line"] == "1"
    assert unescape(found["title"]) == verdicts[0].name
    assert f"s\n\r: {name}" in verdicts[0].name


# --- baseline, reference, states ---


def test_baseline(run, result_file, write, tree, tmp_path):
    for state in ("lstm0.h", "lstm0.c"):
        tree[state]["singular_values"][:] *= 3
        tree[state]["singular_values_stderr"][:] *= 1e-3
        tree[state]["noise_floor"][:] *= 1e-3
    save_result(tree, tmp_path / "before.nc")
    budget = write('[[baseline]]\nfile = "before.nc"\nsigma1_loss = 20\ndelay = [0, 1]\n')
    done = run("check", result_file, "--budget", budget)
    assert done.exit_code == 1
    assert "-66.6" in done.stdout
    done = run("check", result_file, "--budget", budget, "--baseline", result_file)
    assert done.exit_code == 0, done.stdout


def test_horizon_of_a_baseline(run, result_file, write):
    budget = write("[[baseline]]\nhorizon_loss = 0\n")
    done = run("check", result_file, "--budget", budget, "--baseline", result_file)
    assert done.exit_code == 0
    assert done.stdout.endswith("2 passed.\n")


def test_parity(run, result_file, write, tree, tmp_path):
    budget = write('[[parity]]\nfile = "sub/ref.nc"\ntolerance = 1e-3\n')
    (tmp_path / "sub").mkdir()
    shutil.copy(result_file, tmp_path / "sub" / "ref.nc")
    assert run("check", result_file, "--budget", budget).exit_code == 0
    other = tmp_path / "other.nc"
    for name in ("gradient", "block_gradient"):
        tree["lstm0.c"][name][:] *= 1.5
    save_result(tree, other)
    done = run("check", result_file, "--budget", budget, "--reference", other)
    assert done.exit_code == 1
    assert re.search(r"failed +│ lstm0.c", done.stdout)
    assert re.search(r"passed +│ lstm0.h", done.stdout)


def test_without_a_file_to_compare_with(run, result_file, write):
    done = run("check", result_file, "--budget", write("[[parity]]\ntolerance = 0.1\n"))
    assert done.exit_code == 2
    assert 'Add file = "r0.nc" to it, or give --reference' in done.stderr


@pytest.fixture
def stronger(tree, tmp_path):
    """A result that remembers three times as much, without noise to speak of."""
    other = tree.copy(deep=True)
    for state in ("lstm0.h", "lstm0.c"):
        other[state]["singular_values"][:] *= 3
        other[state]["singular_values_stderr"][:] *= 1e-3
        other[state]["noise_floor"][:] *= 1e-3
        for name in ("gradient", "block_gradient"):
            other[state][name][:] *= 3
    save_result(other, tmp_path / "stronger.nc")
    return str(tmp_path / "stronger.nc")


@pytest.mark.parametrize("option", ["--baseline", "--reference"])
def test_a_baseline_that_no_bound_is_about_is_held_by_default(
    run, result_file, stronger, write, option
):
    asked = ["check", result_file, "--budget", write(PASS), option]
    done = run(*asked, stronger)
    assert done.exit_code == 1, done.stdout
    bound = {
        "--baseline": ("baseline", "horizon_loss = 10, sigma1_loss = 10, delay = [1, 5]"),
        "--reference": ("parity", "tolerance = 0.01"),
    }[option]
    assert f"has no [[{bound[0]}]], so the default is held: {bound[1]}. Write" in done.stdout
    assert "passed  │ lstm0.c │ σ₁ at delay 0 ≥ 1e-06" in done.stdout
    assert run(*asked, result_file).exit_code == 0
    own = PASS + f"[[{bound[0]}]]\n" + {
        "--baseline": "sigma1_loss = 99\ndelay = 0\n", "--reference": "tolerance = 0.9\n",
    }[option]  # fmt: skip
    done = run("check", result_file, "--budget", write(own), option, stronger)
    assert done.exit_code == 0, done.stdout
    assert "default" not in done.stdout


def test_the_default_goes_into_every_report(run, result_file, stronger, write, tmp_path):
    path = tmp_path / "j.xml"
    asked = ["check", result_file, "--budget", write(PASS), "--baseline", stronger]
    data = json.loads(run(*asked, "--junit", path, "--json").stdout)
    assert "so the default is held" in data["notes"][0]
    last = data["verdicts"][-1]
    assert (last["table"], last["line"]) == ("the default [[baseline]]", None)
    check_junit(ET.parse(path).getroot())
    lines = run(*asked, "--github").stdout.splitlines()
    assert any(re.match(r"::error file=[^,]*,title=lstm0.c%3A default", x) for x in lines)


def test_a_trend_with_a_draft(run, result_file, stronger, tmp_path):
    """As docs/check.md says: a draft, and a baseline beside it."""
    draft = tmp_path / "d.toml"
    assert run("check", result_file, "--write-budget", draft).exit_code == 0
    done = run("check", result_file, "--budget", draft, "--baseline", result_file)
    assert done.exit_code == 0, done.stdout
    done = run("check", result_file, "--budget", draft, "--baseline", stronger)
    assert done.exit_code == 1, done.stdout


@pytest.mark.parametrize("kind", ["", "fraction = 0.05\n"])
def test_fewer_delays_than_the_baseline(run, result_file, tree, write, tmp_path, kind):
    for state in ("lstm0.h", "lstm0.c"):
        tree[state]["noise_floor"][:] = 0
        tree[state]["singular_values_stderr"][:] = 0
        if kind:
            tree[state]["singular_values"][:] = 1.0
    save_result(tree, tmp_path / "long.nc")
    save_result(tree.isel(delay=slice(2)), tmp_path / "short.nc")
    budget = write(f"[[baseline]]\nhorizon_loss = 0\n{kind}")
    done = run("check", tmp_path / "short.nc", "--budget", budget,
               "--baseline", tmp_path / "long.nc")  # fmt: skip
    assert done.exit_code == 2
    assert "the result must reach 5; it has the delays 0 to 1" in done.stderr
    assert "Analyse with --delays 5 or more" in done.stderr
    budget = write(f"[[baseline]]\nhorizon_loss = 80\n{kind}")
    done = run("check", tmp_path / "short.nc", "--budget", budget,
               "--baseline", tmp_path / "long.nc")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "horizon" in done.stdout
    assert "≥ 1 (baseline 5; at most 80 % less)" in done.stdout


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ("[[sigma1]]\ndelay = 0\nat_least = 0", "at_least = 0 cannot fail"),
        ("[[selectivity]]\ndelay = 0\nat_least = 0", "at_least = 0 cannot fail"),
        ("[[selectivity]]\ndelay = 0\nat_most = 1", "at_most = 1 cannot fail"),
        ("[[horizon]]\nat_least = 0", "at_least = 0 fails only a state that shows nothing"),
        ("[[horizon]]\nat_least = 0\nfraction = 0.5", "at_least = 0 cannot fail"),
        ("[[baseline]]\nhorizon_loss = 100", "horizon_loss = 100 fails only a state that"),
        ("[[baseline]]\nsigma1_loss = 100\ndelay = 0", "sigma1_loss = 100 cannot fail"),
        ("[[parity]]\ntolerance = 1e300", "tolerance = 1e+300 passes a model that remembers no"),
    ],
)
def test_bounds_that_cannot_fail_are_noted(run, result_file, write, bound, said):
    options = ["--baseline", result_file] * ("baseline" in bound)
    options += ["--reference", result_file] * ("parity" in bound)
    done = run("check", result_file, "--budget", write(bound), *options)
    assert done.exit_code == 0
    assert re.search(rf"^Note: .*budget.toml: \[\[\w+\]\] 1 \(line 1\): {re.escape(said)}",
                     done.stdout, re.M)  # fmt: skip


def test_bounds_that_can_fail_are_not_noted(run, result_file, write):
    bounds = (
        PASS + "[[sigma1]]\ndelay = 0\nat_most = 1\n[[horizon]]\nat_least = 1\n"
        "[[selectivity]]\ndelay = 0\nat_least = 0.1\nat_most = 0.9\n"
        "[[baseline]]\nhorizon_loss = 99\nsigma1_loss = 99\ndelay = 0\n"
        "[[parity]]\ntolerance = 0.9\n"
    )
    others = ["--baseline", result_file, "--reference", result_file]
    data = json.loads(
        run("check", result_file, "--budget", write(bounds), *others, "--json").stdout
    )
    assert data["notes"] == []


def test_a_byte_order_mark(run, result_file, write):
    done = run("check", result_file, "--budget", write(b"\xef\xbb\xbf" + FAIL.encode(), "b.toml"))
    assert done.exit_code == 1
    assert done.stderr == ""


def test_quiet_prints_only_what_fails(run, result_file, write):
    done = run("check", result_file, "--budget", write(PASS), "-q")
    assert (done.exit_code, done.output) == (0, "")
    done = run("check", result_file, "--budget", write(PASS + FAIL), "-q")
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.match(r"lstm0.h: σ₁ at delay 0 ≥ 1e\+06: failed: .*\nlstm0.c: ", done.stderr)
    assert "passed" not in done.stderr


def test_one_state_of_a_result(run, result_file, write):
    done = run("check", result_file, "--budget", write(PASS), "--state", "lstm0.c")
    assert done.exit_code == 0
    assert done.stdout.endswith("1 passed.\n")
    assert "lstm0.h" not in done.stdout
    named = '[[sigma1]]\nstate = "lstm0.h"\ndelay = 0\nat_least = 1e6\n'
    done = run("check", result_file, "--budget", write(named), "--state", "lstm0.c")
    assert done.exit_code == 2
    assert "--state leaves out lstm0.h, which [[sigma1]] 1 (line 1)" in done.stderr


# --- drafting ---


def test_a_draft_for_one_state(run, result_file, tmp_path):
    path = tmp_path / "d.toml"
    done = run("check", result_file, "--write-budget", path, "--state", "lstm0.c")
    assert done.exit_code == 0, done.stderr
    assert {s for r in read_budget(path).rules for s in r.values["state"]} == {"lstm0.c"}


def test_a_draft_replaces_no_file_unless_told(run, result_file, tmp_path):
    path = tmp_path / "d.toml"
    path.write_text("edited")
    done = run("check", result_file, "--write-budget", path)
    assert done.exit_code == 2
    assert "add --force to replace it" in done.stderr
    assert path.read_text() == "edited"
    assert run("check", result_file, "--write-budget", path, "--force").exit_code == 0
    assert "[[sigma1]]" in path.read_text(encoding="utf-8")


def test_a_draft_is_passed_by_its_result(run, result_file, tmp_path):
    path = tmp_path / "drafted.toml"
    done = run("check", result_file, "--write-budget", path)
    assert done.exit_code == 0
    assert f"Written to {path}" in done.stdout
    text = path.read_text(encoding="utf-8")
    assert "# measured" in text
    done = run("check", result_file, "--budget", path, "--strict")
    assert done.exit_code == 0, done.stdout
    assert "failed" not in done.stdout


# --- wrong calls ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give either --budget to check, or --write-budget"),
        (["--budget", "BUDGET", "--write-budget", "d.toml"], "Give either --budget"),
        (["--write-budget", "d.toml", "--strict"], "--write-budget checks nothing"),
        (["--write-budget", "d.toml", "--json"], "leave out --json"),
        (["--budget", "BUDGET", "--json", "--github"], "both print to stdout"),
        (["--budget", "BUDGET", "--positions", "10"], "--positions belong(s) to the analysis"),
        (["--budget", "BUDGET", "--state", "gru0.h"], "has no state 'gru0.h'; it has lstm0.h"),
        (["--write-budget", "d.toml", "--state", "gru0.h"], "has no state 'gru0.h'"),
        (["--budget", "BUDGET", "--force"], "--force belongs to --write-budget"),
        (["--write-budget", "BUDGET"], "is there already"),
        (["--write-budget", "RESULT", "--force"], "is also an input"),
        (["--budget", "none.toml"], "none.toml does not exist"),
        (["--budget", "BUDGET", "--baseline", "none.nc"], "none.nc does not exist"),
        (["--budget", "BUDGET", "--junit", "no/where.xml"], "there is no folder"),
        (["--budget", "BUDGET", "--junit", "BUDGET"], "is also an input"),
    ],
)
def test_wrong_calls(run, result_file, write, options, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    known = {"BUDGET": write(PASS), "RESULT": result_file}
    done = run("check", result_file, *(known.get(o, o) for o in options))
    assert done.exit_code == 2
    assert said in done.stderr
    assert not (tmp_path / "d.toml").exists()


BAD = {
    "empty": ("", "sets no bound"),
    "no bound": ("sigma = 2", "sets no bound"),
    "an empty list": ("sigma1 = []", "sets no bound"),
    "no TOML": ("[[horizon]\nat_least = 5", "not valid TOML: "),
    "a line of no TOML": ("[[horizon]]\nat_least 5", "line 2"),
    "a key twice": ("[[horizon]]\nat_least = 5\nat_least = 6", "not valid TOML"),
    "no text": (b"\x80\xff\n[[horizon]]", "is not UTF-8 text (line 1)"),
    "a null": ("[[sigma1]]\nname = 'a\0b'\ndelay = 0\nat_least = 1", "not valid TOML"),
    "nested": ("a = " + "[" * 20000 + "]" * 20000, "nested too deeply"),
    "huge integer": ("[[horizon]]\nat_least = " + "9" * 5000, "not valid TOML"),
    "large file": ("#" * 1_000_001, "larger than 1,000,000 bytes"),
    "unknown table": ("[[memory]]\nat_least = 5\n" + PASS, 'line 1: unknown key "memory"'),
    "unknown root key": ("sigmas = 2\n" + PASS, 'line 1: unknown key "sigmas"'),
    "unknown key": (
        "[[horizon]]\nat_leest = 5",
        'line 2: [[horizon]] 1: unknown key "at_leest"; it may hold name, state',
    ),
    "second table": (
        PASS + "[[sigma1]]\n# more\ndelay = -1\nat_least = 1",
        "line 6: [[sigma1]] 2: delay must be a delay (a whole number, 0 or more), or a list",
    ),
    "single brackets": ("[horizon]\nat_least = 5", "line 1: horizon must be a list of tables"),
    "a list of numbers": ("horizon = [5]", "write [[horizon]], in double brackets"),
    "a number for a table": ("sigma1 = 5", "sigma1 must be a list of tables"),
    "missing at_least": ("[[horizon]]\nfraction = 0.5", "line 1: [[horizon]] 1: the key at_least"),
    "missing delay": ("[[sigma1]]\nat_least = 0.5", "the key delay is missing"),
    "missing tolerance": ("[[parity]]\nfile = 'x.nc'", "the key tolerance is missing"),
    "no bound in sigma1": ("[[sigma1]]\ndelay = 0", "needs at_least, at_most or both"),
    "contradiction": (
        "[[sigma1]]\ndelay = 0\nat_least = 2\nat_most = 1",
        "at_least 2 is above at_most 1",
    ),
    "no loss": ("[[baseline]]\nfile = 'x.nc'", "needs horizon_loss, sigma1_loss or both"),
    "loss without delay": ("[[baseline]]\nsigma1_loss = 5", "belong together"),
    "fraction alone": (
        "[[baseline]]\nsigma1_loss = 5\ndelay = 0\nfraction = 0.5",
        "it needs horizon_loss",
    ),
    "text for a number": ("[[horizon]]\nat_least = '5'", "at_least must be a whole number"),
    "true for a number": ("[[horizon]]\nat_least = true", "not true"),
    "half a delay": ("[[horizon]]\nat_least = 2.5", "not 2.5"),
    "date": ("[[sigma1]]\ndelay = 0\nat_least = 2026-01-01", "not a date"),
    "nan": ("[[sigma1]]\ndelay = 0\nat_least = nan", "at_least must be a finite number"),
    "infinity": ("[[sigma1]]\ndelay = 0\nat_most = inf", "at_most must be a finite number"),
    "negative": ("[[sigma1]]\ndelay = 0\nat_least = -1", "line 3: [[sigma1]] 1: at_least must be"),
    "beyond floats": (f"[[sigma1]]\ndelay = 0\nat_least = 1{'0' * 400}", "a finite number"),
    "share above 1": ("[[selectivity]]\ndelay = 0\nat_least = 1.5", "at most 1"),
    "leading": ("[[selectivity]]\ndelay = 0\nleading = 2\nat_least = 0.5", "must be 1 or 5"),
    "loss above 100": ("[[baseline]]\nhorizon_loss = 101", "at most 100"),
    "fraction 0": ("[[horizon]]\nat_least = 1\nfraction = 0", "finite number above 0"),
    "tolerance 0": ("[[parity]]\ntolerance = 0", "finite number above 0"),
    "delay twice": ("[[sigma1]]\ndelay = [0, 0]\nat_least = 1", "without repetition"),
    "no delays": ("[[sigma1]]\ndelay = []\nat_least = 1", "or a list of them"),
    "list in a list": ("[[sigma1]]\ndelay = [[0]]\nat_least = 1", "or a list of them"),
    "state a number": ("[[horizon]]\nstate = 5\nat_least = 0", "state must be a state's name"),
    "empty state": ("[[horizon]]\nstate = ''\nat_least = 0", "state must be a state's name"),
    "no such state": (
        "[[horizon]]\nstate = 'gru'\nat_least = 0",
        '[[horizon]] 1 (line 1): state: the result has no state "gru"; it has lstm0.h, lstm0.c.',
    ),
    "no such group": ("[[horizon]]\ngroup = 'verb'\nat_least = 0", 'no group "verb"; it has all'),
    "delay beyond": (
        "[[sigma1]]\ndelay = [0, 6]\nat_least = 0",
        "[[sigma1]] 1 (line 1): delay: the result has the delays 0 to 5, not 6. Analyse with",
    ),
    "horizon beyond": ("[[horizon]]\nat_least = 6", "at_least: the result has the delays 0 to 5"),
    "sigma 0": ("sigma = 0\n" + PASS, "line 1: the head of the file: sigma must be"),
    "sigma 7": ("sigma = 7\n" + PASS, "at most 6"),
    "normalization": ("normalization = 'z'\n" + PASS, 'must be "whitened" or "none", not "z"'),
    "analysis a list": ("analysis = [1]\n" + PASS, "analysis must be a table"),
    "analysis key": (
        "[analysis]\npositons = 5\n" + PASS,
        'line 2: [analysis]: unknown key "positons"',
    ),
    "analysis type": ("[analysis]\npositions = 0\n" + PASS, "positions must be a whole number"),
    "analysis method": ("[analysis]\nmethod = 'x'\n" + PASS, 'method must be "jvp" or "fd"'),
    "analysis step": ("[analysis]\nstep = 0.1\n" + PASS, 'add method = "fd"'),
    "missing file": (
        "[[baseline]]\nfile = 'none.nc'\nhorizon_loss = 5",
        "none.nc does not exist",
    ),
    "file that is none": ("[[parity]]\nfile = '.'\ntolerance = 1", "is not a file"),
    "a line break in a name": (
        '[[sigma1]]\nname = "a\\n::error::b"\ndelay = 0\nat_least = 1',
        "line 2: [[sigma1]] 1: name must be a text of printable characters",
    ),
    "analysis tf32": ("[analysis]\ntf32 = 1\n" + PASS, "tf32 must be true or false, not 1"),
    "NUL in a path": ('[[parity]]\nfile = "a\\u0000b"\ntolerance = 1', "file must be a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_budgets(run, result_file, write, case):
    text, said = BAD[case]
    done = run("check", result_file, "--budget", write(text))
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert len(done.stderr) < 1500


def test_there_are_enough_bad_budgets():
    assert len(BAD) >= 25


def test_a_budget_that_is_a_folder(run, result_file, tmp_path):
    done = run("check", result_file, "--budget", tmp_path)
    assert done.exit_code == 2
    assert "is no ordinary file" in done.stderr


# --- models ---


@pytest.fixture
def model(tmp_path):
    words = np.random.default_rng(0).integers(0, 6, 400)
    text = " ".join(f"w{w + 1}" for w in words)
    (tmp_path / "c.txt").write_text(text.replace(" w1", " w1\n"))
    return models.save(models.fused(layers=1), tmp_path / "m.onnx")


def test_a_model(run, model, write, tmp_path):
    budget = write("[analysis]\npositions = 100\nseed = 3\n[[sigma1]]\ndelay = 4\nat_least = 0\n")
    options = ["--corpus", tmp_path / "c.txt", "--budget", budget, "--json"]
    done = run("check", model, *options)
    assert done.exit_code == 0
    assert "unknown" in done.stderr or "Memory: about" in done.stderr
    alone = json.loads(done.stdout)["verdicts"]
    result = tmp_path / "r.nc"
    sampled = ["--positions", "100", "--seed", "3", "--delays", "4", "-q"]
    run("analyze", model, tmp_path / "c.txt", "-o", result, *sampled)
    apart = json.loads(run("check", result, "--budget", budget, "--json").stdout)["verdicts"]
    assert [v["measured"] for v in alone] == [v["measured"] for v in apart]
    # an option outweighs the table
    done = run("check", model, *options, "--seed", "4", "-q")
    assert done.stderr == ""
    assert json.loads(done.stdout)["verdicts"][0]["measured"] != alone[0]["measured"]


def test_a_model_and_its_reference(run, model, write, tmp_path):
    budget = write(
        "[analysis]\npositions = 100\ndelays = 3\n"
        '[[parity]]\nfile = "m.onnx"\ntolerance = 1e-9\n'
        "[[baseline]]\nhorizon_loss = 0\n"
    )
    corpus = ["--corpus", tmp_path / "c.txt"]
    assert run("check", model, "--budget", budget, *corpus, "--baseline", model).exit_code == 0
    result = tmp_path / "r.nc"
    options = ["--positions", "100", "--delays", "6", "-q"]
    run("analyze", model, tmp_path / "c.txt", "-o", result, *options)
    # a reference of more delays decides how many are followed
    budget = write("[analysis]\npositions = 100\n[[parity]]\ntolerance = 1e-9\n")
    done = run("check", model, "--budget", budget, *corpus, "--reference", result)
    assert done.exit_code == 0, done.output
    assert "7 delays" in done.stdout


def test_only_the_states_of_the_budget_are_followed(run, model, write, tmp_path):
    budget = write("[[sigma1]]\nstate = 'lstm0.c'\ndelay = 1\nat_least = 0")
    corpus = ["--corpus", tmp_path / "c.txt", "-q", "--positions", "50"]
    assert run("check", model, "--budget", budget, *corpus).exit_code == 0
    budget = write("[[sigma1]]\nstate = 'nothing'\ndelay = 1\nat_least = 0")
    done = run("check", model, "--budget", budget, *corpus)
    assert done.exit_code == 2
    assert '[[sigma1]] 1 (line 1): state: the model has no state "nothing"' in done.stderr
    done = run("check", model, "--budget", write(PASS + FAIL.replace("0", "4", 1)), *corpus,
               "--delays", "3")  # fmt: skip
    assert done.exit_code == 2
    assert "[[sigma1]] 2 (line 4): delay: the model has the delays 0 to 3, not 4" in done.stderr


def test_a_model_without_a_corpus(run, model, write):
    done = run("check", model, "--budget", write(PASS))
    assert done.exit_code == 2
    assert "add --corpus FILE" in done.stderr


def test_a_corpus_without_a_model(run, result_file, write, tmp_path):
    done = run("check", result_file, "--budget", write(PASS), "--corpus", write("w1", "c.txt"))
    assert done.exit_code == 2
    assert "--corpus belong(s) to the analysis of a model" in done.stderr


@pytest.mark.parametrize("name", ["x.nc", "x.onnx", "none"])
def test_what_is_neither(run, write, tmp_path, name):
    path = tmp_path / "none" if name == "none" else write("hello", name)
    corpus = [] if name == "x.nc" else ["--corpus", write("w1", "c.txt")]
    done = run("check", path, "--budget", write(PASS), *corpus)
    assert done.exit_code == 2
    assert ("no netCDF-4 file" if name == "x.nc" else name) in done.stderr


# --- the sample ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("ci") / "corpus.txt"
    command = [sys.executable, "-m", "mnemoscope.cli", "corpus", "pydoc", "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.parametrize(("name", "status"), [("pydoc-lstm", 0), ("pydoc-lstm-untrained", 1)])
def test_the_sample_budget(run, corpus, name, status):
    done = run(
        "check", ROOT / f"samples/models/{name}.onnx", "--corpus", corpus,
        "--budget", ROOT / "samples/ci/budget.toml", "--strict", "--json", "-q",
    )  # fmt: skip
    assert done.exit_code == status, done.output
    counts = json.loads(done.stdout)["counts"]
    assert counts["undecided"] == 0
    assert (counts["failed"] > 0) == bool(status)


def test_the_sample_workflow(run):
    text = (ROOT / "samples/ci/memory.yml").read_text(encoding="utf-8")
    try:
        import yaml
    except ModuleNotFoundError:
        commands = text
        paths = re.findall(r"^  (?:MODEL|BUDGET): (\S+)$", text, re.M)
    else:
        data = yaml.safe_load(text)
        commands = "\n".join(s.get("run", "") for s in data["jobs"]["memory"]["steps"])
        paths = [data["env"][k] for k in ("MODEL", "BUDGET")]
    assert len(paths) == 2
    assert all((ROOT / p).is_file() for p in paths)
    assert "\t" not in text
    for option in ("--corpus", "--budget", "--github", "--junit"):
        assert option in commands
        assert option in run("check", "--help").stdout
    assert "torch" not in commands.lower().replace("pytorch", "")
