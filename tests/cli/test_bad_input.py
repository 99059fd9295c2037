"""Whatever a user gives: exit status 2, one message, no traceback, and no file left behind."""

from __future__ import annotations

import io
import json
import os
import zipfile

import h5py
import models
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from mnemoscope.analyzer.roles import ROLES_KEY, VOCABULARY_KEY
from mnemoscope.cli.main import main
from models import Graph
from onnx import helper, numpy_helper

BLOB = models.fused().SerializeToString()
TEXT = "w1 w2 w3\nw4 w5\n" * 5


@pytest.fixture
def folder(tmp_path):
    """A folder with a good model and a good corpus."""
    (tmp_path / "good.onnx").write_bytes(BLOB)
    (tmp_path / "c.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def refuse(folder):
    """Run a command that must be refused; gives the message."""

    def call(*arguments, **options):
        before = sorted(folder.rglob("*"))
        done = CliRunner().invoke(main, [str(a) for a in arguments], **options)
        assert isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == 2, done.output
        assert sorted(folder.rglob("*")) == before
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert [x.startswith("Error: ") for x in lines].count(True) == 1, done.stderr
        # click says how the command is called before it says what is wrong with the call.
        assert lines[0].startswith(("Error: ", "Usage: ")), done.stderr
        if lines[0].startswith("Error: "):
            assert len(lines) == 1, done.stderr
        assert len(lines[-1]) < 1000
        return lines[-1].removeprefix("Error: ")

    return call


@pytest.fixture
def analyze(folder, refuse):
    """Refuse an analysis of a model (bytes, model or path) and a corpus."""

    def call(model, *options, corpus=None, delays=3, inspect=True, **more):
        path = folder / "m.onnx"
        if isinstance(model, onnx.ModelProto):
            model = model.SerializeToString()
        if isinstance(model, bytes):
            path.write_bytes(model)
        else:
            path = model
        if corpus is None:
            corpus = folder / "c.txt"
        said = refuse("analyze", path, corpus, "-o", folder / "r.nc", "--delays", delays, "-q",
                      *options, **more)  # fmt: skip
        if inspect:
            assert refuse("inspect", path) == said
        return said

    return call


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; expected an ONNX model"),
        (b"hello world\n", "is not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX model"),
        (zipped(), "is not an ONNX model"),
        *((np.random.default_rng(s).bytes(700), "is not an ONNX model") for s in range(3)),
        *((BLOB[: int(len(BLOB) * f)], "ONNX model") for f in (0.001, 0.1, 0.5, 0.9, 0.999)),
    ],
)
def test_not_a_model(analyze, content, said):
    assert said in analyze(content)


def test_damaged_bytes_are_refused_or_harmless(folder):
    rng = np.random.default_rng(0)
    for _ in range(15):
        data = bytearray(BLOB)
        for at in rng.integers(len(data), size=4):
            data[at] = rng.integers(256)
        (folder / "m.onnx").write_bytes(data)
        done = CliRunner().invoke(main, ["inspect", str(folder / "m.onnx")])
        assert done.exit_code in (0, 2)
        assert done.exception is None or isinstance(done.exception, SystemExit)


def test_missing_model_and_folder(analyze, folder):
    assert "There is no model file" in analyze(folder / "none.onnx")
    assert "is not a file; expected an ONNX model" in analyze(folder)


def edited(change=None, vocabulary=None, model=None):
    """A model whose roles (and vocabulary) are changed as JSON; a text replaces them whole."""
    model = model or models.fused()
    for p in model.metadata_props:
        how = {ROLES_KEY: change, VOCABULARY_KEY: vocabulary}[p.key]
        if isinstance(how, str):
            p.value = how
        elif how:
            data = json.loads(p.value)
            how(data)
            p.value = json.dumps(data)
    return model


def put(*path, value):
    """A change that sets one entry; `...` removes it."""

    def change(data):
        for key in path[:-1]:
            data = data[key]
        if value is ...:
            del data[path[-1]]
        else:
            data[path[-1]] = value

    return change


def test_without_roles(analyze):
    model = models.fused()
    del model.metadata_props[:]
    assert "Give it roles first: mnemoscope export onnx" in analyze(model)


TEXT_ROLES = ("tokens", "embedding", "logits")
STATE = ("states", 0)
WRONG = [
    *((put(role, value=...), f"roles lacks {role}") for role in (*TEXT_ROLES, "states")),
    *((put(role, value="nope"), "The roles name 'nope' as graph") for role in TEXT_ROLES),
    *(
        (put(role, value=v), f"roles.{role} must be text, found")
        for role in TEXT_ROLES
        for v in (None, 3, [], {"a": 1})
    ),
    *((put("states", value=v), "roles.states must be a list") for v in (None, 3, "x", {}, True)),
    (put("states", value=[]), "no state is listed"),
    *((put("states", value=[v]), "roles.states[0] must be an object") for v in (None, 3, [])),
    (put("normalized", value="yes"), "roles.normalized must be true or false"),
    *((put("source", value=v), "roles.source must be an object") for v in (None, 3, [])),
    (put("source", value={"a": 1}), "roles.source.a must be text, found 1"),
    (put("source", value={"a": "\0"}), "roles.source.a must be text"),
    *((put("version", value=v), "have version") for v in (..., None, 0, 2, "1", [])),
    (put("version", value=True), "roles.version must be a whole number"),
    (put("more", value=1), "roles has the unknown entry 'more'"),
    *(
        (put(*STATE, key, value=...), f"roles.states[0] lacks {key}")
        for key in ("name", "input", "output", "kind", "layer", "batch_axis")
    ),
    *(
        (put(*STATE, key, value=v), f"roles.states[0].{key} must be text")
        for key in ("name", "input", "output")
        for v in (None, 1, [1], {})
    ),
    *(
        (put(*STATE, key, value=v), f"roles.states[0].{key} must be a whole number from 0 on")
        for key in ("layer", "batch_axis", "layer_axis", "layer_index")
        for v in ("x", -1, 1.5, 2**40, True, [], float("nan"))
    ),
    (put(*STATE, "name", value=""), "is empty, holds a / or does not print"),
    (put(*STATE, "name", value="a/b"), "is empty, holds a / or does not print"),
    (put(*STATE, "name", value="a\nb"), "is empty, holds a / or does not print"),
    (put(*STATE, "name", value="\ud800"), "roles.states[0].name must be text"),
    (put(*STATE, "name", value="lstm1.h"), "two states share one name"),
    (put(*STATE, "kind", value="x"), "kind must be cell or hidden or other, found 'x'"),
    (put(*STATE, "kind", value=[]), "kind must be cell or hidden or other, found []"),
    (put(*STATE, "input", value="nope"), "as graph input for state lstm0.h"),
    (put(*STATE, "output", value="nope"), "as graph output for state lstm0.h"),
    (put(*STATE, "batch_axis", value=7), "claims axes [0, 7] of 'h', which has 3 axes"),
    (put(*STATE, "layer_axis", value=9), "claims axes [1, 9] of 'h', which has 3 axes"),
    (put(*STATE, "layer_axis", value=1), "has one axis for both layers and streams"),
    (put(*STATE, "layer_axis", value=None), "needs both layer_axis and layer_index or none"),
    (put(*STATE, "layer_index", value=3), "must cover its layers 0, 1, …; found [1, 3]"),
    (put(*STATE, "initial", value="abc"), "initial must be a list"),
    (put(*STATE, "initial", value=[None] * 4), "initial[0] must be a finite number"),
    (put(*STATE, "initial", value=[float("nan")] * 4), "initial[0] must be a finite number"),
    (put(*STATE, "initial", value=[10**400] * 4), "initial[0] must be a finite number"),
    (put(*STATE, "initial", value=[1.0] * 3), "has 3 elements, its tensor has 4"),
    (put(*STATE, "initial", value=[0.0] * 10_000), "has 10000 elements, its tensor has 4"),
    (put(*STATE, "initial", value=[1e300] * 4), "holds 1e+300, which float32 cannot"),
    (put(*STATE, "output", value="c_next"), "share the tensor 'h', but not their output"),
    ("", "malformed"),
    ("{", "malformed"),
    ("null", "roles must be an object, found None"),
    ("[1]", "roles must be an object"),
    ("[" * 100_000, "malformed"),
    ('{"version": 1, "states": ' + "[" * 500 + "]" * 500 + "}", "malformed"),
    ('{"version": 1, "tokens": "' + "x" * 10**6 + '"}', "malformed"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_malformed_roles(analyze, change, said):
    assert said in analyze(edited(change))


def alike(data):
    for state in data["states"]:
        state["output"] = "h_next"


def test_states_that_claim_one_output(analyze):
    assert "Two states claim one output" in analyze(edited(alike))


@pytest.mark.parametrize("change", [put("states", 0, "output", value="logits"),
                                    put("states", 0, "output", value="embedding")])  # fmt: skip
def test_an_output_that_is_not_the_state(analyze, change):
    said = analyze(edited(change, model=models.flat()))
    assert "a state must keep its size" in said or "does not run" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("tokens", value=...), "vocabulary lacks tokens"),
        (put("tokens", value=[]), "The vocabulary is empty"),
        (put("tokens", value="abc"), "vocabulary.tokens must be a list"),
        (put("tokens", 3, value=7), "vocabulary.tokens[3] must be text, found 7"),
        (put("tokens", 3, value="\ud800"), "vocabulary.tokens[3] must be text"),
        (put("tokens", 3, value="w1"), "The vocabulary holds 'w1' twice"),
        (
            put("tokens", value=["<unk>", "<eos>"]),
            "has 2 tokens, but the model gives logits for 12",
        ),
        (put("unknown", value="nope"), "The unknown token 'nope' is not in the vocabulary"),
        (put("end_of_line", value="nope"), "The end-of-line token 'nope' is not in the"),
        (put("level", value="byte"), "vocabulary.level must be word or char, found 'byte'"),
        ("[]", "vocabulary must be an object"),
    ],
)
def test_malformed_vocabulary(analyze, change, said):
    assert said in analyze(edited(vocabulary=change))


def flat(change):
    """A flat state whose step `change(graph, x, h)` computes as `h_next`."""
    g = Graph()
    x = g.now()
    change(g, x, g.state("h", ["batch", 3], kind="hidden", layer=0, batch_axis=0))
    return g.finish(g.lone(x), 3, time=1)


def grows(g, x, h):
    g.op("Concat", h, x, out="h_next", axis=1)
    g.outputs[-1].type.tensor_type.shape.dim[1].dim_value = 6


def dynamic(g, x, h):
    g.op("Add", h, x, out="h_next")
    g.inputs[-1].type.tensor_type.shape.dim[1].dim_param = "n"


def rounds(g, x, h):
    g.op("Cast", g.op("Add", h, x), to=7, out="h_next")
    g.outputs[-1].type.tensor_type.elem_type = 7


def breaks(g, x, h):
    odd = g.op("Reshape", g.op("Add", h, x), g.constant([7, -1]))
    g.op("Reshape", odd, g.constant([-1, 3]), out="h_next")


def words(g, x, h):
    g.op("Identity", h, out="h_next")
    for info in (g.inputs[-1], g.outputs[-1]):
        info.type.tensor_type.elem_type = 8


def forgets(g, x, h):
    g.op("Tanh", h, out="h_next")


def asks(g, x, h):
    g.inputs.append(helper.make_tensor_value_info("extra", 1, ["batch", 3]))
    g.op("Add", h, g.op("Mul", x, "extra"), out="h_next")


def enormous(g, x, h):
    g.op("Add", h, g.op("ReduceSum", x, g.constant([1])), out="h_next")
    for info in (g.inputs[-1], g.outputs[-1]):
        info.type.tensor_type.shape.dim[1].dim_value = 10**13


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (grows, "State h enters a step as 3 values and leaves it as 6; a state must keep its size"),
        (dynamic, "The size of state h is unknown: axis 1 of 'h' has no fixed length"),
        (rounds, "does not match expected type"),
        (breaks, "The model does not run"),
        (words, "State h must be a tensor of numbers; 'h' is not"),
        (forgets, "No state depends on the embedding 'embedding'"),
        (asks, "The recurrent core reads the input extra, which no role covers"),
        (enormous, "One step of this model would need about 291.0 TiB of memory"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_steps_that_are_none(analyze, change, said):
    assert said in analyze(flat(change))


def test_integers_alone(analyze):
    assert "there is nothing to remember" in analyze(models.counter(differentiable=False))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 2, 3])
def test_weights_that_are_no_numbers(analyze, value, which):
    model = models.flat()
    tensor = model.graph.initializer[which]
    array = numpy_helper.to_array(tensor).copy()
    array[0, 1] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert "holds 1 values that are NaN or infinite; every weight must be finite" in analyze(model)


def test_a_lone_nan(analyze):
    def change(g, x, h):
        g.op("Add", h, g.op("Mul", x, g.constant(np.nan, "float32")), out="h_next")

    assert "NaN or infinite" in analyze(flat(change))


def test_an_embedding_that_is_no_number(analyze):
    g = Graph()
    zero = g.constant(0, "float32")
    table = g.op("Gather", g.weight(models.V, 3), "tokens")
    x = g.op("Squeeze", g.op("Div", table, zero, out="embedding"), g.constant([1]))
    h = g.state("h", ["batch", 3], kind="hidden", layer=0, batch_axis=0)
    g.op("Add", h, x, out="h_next")
    model = g.finish(g.lone("h_next"), 3, time=1)
    assert "is NaN or infinite for 12 of 12 tokens" in analyze(model, inspect=False)


def test_jacobians_that_overflow(analyze):
    def change(g, x, h):
        g.op("Add", x, g.op("Mul", h, g.constant(1e30, "float32")), out="h_next")

    assert "The Jacobians overflowed" in analyze(flat(change), inspect=False)


class TestExternalData:
    @pytest.fixture
    def model(self, folder):
        """A model with one weight elsewhere; gives what changes where."""
        path = folder / "m.onnx"

        def make(location, **entries):
            proto = models.flat()
            tensor = proto.graph.initializer[2]
            entries = {"location": location, "offset": 0, "length": len(tensor.raw_data), **entries}
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            path.write_bytes(proto.SerializeToString())
            return path

        data = next(t for i, t in enumerate(models.flat().graph.initializer) if i == 2).raw_data
        (folder / "inside.bin").write_bytes(data)
        return make

    def test_beside_the_model_is_read(self, model):
        assert CliRunner().invoke(main, ["inspect", str(model("inside.bin"))]).exit_code == 0

    @pytest.mark.parametrize(
        "location",
        ["../outside.bin", "/etc/hostname", "", "x/../../y", "inside.bin\0", "link.bin",
         "linked/hostname"],
    )  # fmt: skip
    def test_elsewhere_is_refused(self, analyze, model, folder, location):
        (folder.parent / "outside.bin").write_bytes(bytes(100))
        (folder / "link.bin").symlink_to(folder.parent / "outside.bin")
        (folder / "linked").symlink_to("/etc")
        said = analyze(model(location))
        assert "outside the model's folder; external data must lie beside the model" in said

    @pytest.mark.parametrize(
        ("location", "entries", "said"),
        [
            ("gone.bin", {}, "which is missing beside the model"),
            (".", {}, "which is missing beside the model"),
            ("inside.bin", {"length": 10**6}, "cannot be read from 'inside.bin'"),
            ("inside.bin", {"length": 3}, "cannot be read from 'inside.bin'"),
            ("inside.bin", {"offset": 20}, "cannot be read from 'inside.bin'"),
            ("inside.bin", {"offset": -1}, "cannot be read from 'inside.bin'"),
            ("inside.bin", {"offset": "x"}, "cannot be read from 'inside.bin'"),
            ("inside.bin", {"length": 10**30}, "cannot be read from 'inside.bin'"),
        ],
    )
    def test_wrong_data(self, analyze, model, location, entries, said):
        assert said in analyze(model(location, **entries))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; expected text, one sentence a line"),
        (b"\n\n  \n", "is empty; expected text"),
        (b"w1 w2\nw1 \xff\n", "is not UTF-8 text: byte 9 (line 2)"),
        (b"zebra yak\ngnu\n", "Not one token of the corpus"),
        (b"w1 w2\n", "has 3 positions, too few for a delay of 3: it needs at least 4"),
    ],
)
def test_corpus(analyze, folder, content, said):
    path = folder / "bad.txt"
    path.write_bytes(content)
    assert said in analyze(BLOB, corpus=path, inspect=False)
    assert said.replace("bad.txt", "standard input") in analyze(
        BLOB, corpus="-", inspect=False, input=content
    )


def test_corpus_that_is_none(analyze, folder):
    assert "There is no corpus file" in analyze(BLOB, corpus=folder / "no.txt", inspect=False)
    assert "cannot be read: Is a directory" in analyze(BLOB, corpus=folder, inspect=False)


def test_unknown_words_without_a_token_for_them(analyze, folder):
    (folder / "bad.txt").write_text("w1 zebra\n")
    model = edited(vocabulary=put("unknown", value=None))
    said = analyze(model, corpus=folder / "bad.txt", inspect=False)
    assert "1 words (1 distinct) that the vocabulary lacks, and it has no unknown token" in said


def test_ids_beyond_the_model(analyze, folder):
    model = models.flat()
    del model.metadata_props[1]
    (folder / "ids.txt").write_text("1 2 3 4 5 12\n")
    said = analyze(model, corpus=folder / "ids.txt", inspect=False)
    assert "holds token id 12; the model knows the ids 0 to 11" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--delays", "-1"], "-1 is not in the range"),
        (["--delays", "100"], "too few for a delay of 100"),
        (["--delays", str(10**30)], "too few for a delay of"),
        (["--positions", "0"], "0 is not in the range"),
        (["--blocks", "1"], "1 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--step", "0.1"], "add --method fd"),
        (["--step", "0", "--method", "fd"], "is not in the range"),
        (["--step", "nan", "--method", "fd"], "nan is not a finite number"),
        (["--step", "inf", "--method", "fd"], "inf is not a finite number"),
        (["--state", "nope"], "has no differentiable state 'nope'; it has lstm0.h, lstm1.h"),
        (["--memory", "0.000001"], "and 1 KiB may be used. Ask for fewer --delays (now 3)"),
        (["--memory", "inf"], "inf is not a finite number"),
        (["--provider", "tpu"], "'tpu' is not one of"),
    ],
)
def test_options(analyze, options, said):
    assert said in analyze(BLOB, *options, inspect=False)


def test_cuda_on_a_machine_without_one(analyze, monkeypatch):
    monkeypatch.setattr(
        "mnemoscope.analyzer._runtime.cuda_problem", lambda: "this machine shows no NVIDIA device"
    )
    said = analyze(BLOB, "--provider", "cuda", inspect=False)
    assert said.startswith("--provider cuda was asked for, but this machine shows no NVIDIA device")


def test_what_memory_is_needed_is_said(analyze):
    said = analyze(models.fused(vocabulary=400), "--memory", "0.0001", inspect=False)
    assert said.startswith("This run would need about ")
    assert "KiB of memory, and 98 KiB may be used" in said


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("no/r.nc", "there is no folder"),
        ("", "is a folder; name the file"),
        ("good.onnx", "is also an input"),
        ("c.txt", "is also an input"),
        ("hard.nc", "is also an input"),
    ],
)
def test_outputs(refuse, folder, output, said):
    os.link(folder / "c.txt", folder / "hard.nc")
    assert said in refuse("analyze", folder / "good.onnx", folder / "c.txt", "-o", folder / output)
    assert (folder / "c.txt").read_text() == TEXT
    assert (folder / "good.onnx").read_bytes() == BLOB


def test_a_failed_run_keeps_the_old_result(refuse, folder):
    (folder / "r.nc").write_text("old")
    refuse("analyze", folder / "good.onnx", folder / "c.txt", "-o", folder / "r.nc", "--delays", 99)
    assert (folder / "r.nc").read_text() == "old"


def test_names_that_are_no_utf8(folder):
    corpus = os.fsdecode(bytes(folder) + b"/c\xff.txt")
    model = os.fsdecode(bytes(folder) + b"/m\xff.onnx")
    try:
        os.link(folder / "c.txt", corpus)
        os.link(folder / "good.onnx", model)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    call = ["analyze", model, corpus, "-o", str(folder / "r.nc"), "--delays", "3", "-q"]
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    shown = json.loads(CliRunner().invoke(main, ["show", str(folder / "r.nc"), "--json"]).stdout)
    assert shown["attributes"]["model"] == "m\\udcff.onnx"


class TestResults:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda p: p.unlink(), "does not exist"),
            (lambda p: p.write_bytes(b""), "is empty"),
            (lambda p: p.write_bytes(p.read_bytes()[:3000]), "cannot be read: it is truncated"),
            (lambda p: p.write_text("text"), "is no netCDF-4 file"),
            (lambda p: p.write_bytes(BLOB), "is no netCDF-4 file"),
        ],
    )
    @pytest.mark.parametrize("command", ["show", "plot"])
    def test_files(self, refuse, folder, result_file, command, change, said):
        path = folder / "r.nc"
        change(path)
        more = ["-o", folder / "f.png"] if command == "plot" else []
        assert said in refuse(command, path, *more)

    def test_another_version(self, refuse, folder, result_file):
        with h5py.File(result_file, "a") as file:
            file.attrs["format_version"] = 99
        assert "has result format version 99, this program reads version 1" in refuse(
            "show", result_file
        )
