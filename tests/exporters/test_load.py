"""A user's files: what loads, and what is refused with which words."""

from __future__ import annotations

import json
import sys

import pytest
from mnemoscope.analyzer.errors import ModelError
from mnemoscope.exporters._load import load_object, load_weights
from mnemoscope.exporters._vocabulary import VocabularyOptions

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 (torch may be missing)

SOURCE = """
import helper_beside_it
from torch import nn
print
class Model(nn.Linear):
    def __init__(self):
        super().__init__(2, helper_beside_it.WIDTH)
def build():
    return Model()
def needs(argument):
    return Model()
module = Model()
number = 3
def wrong():
    return 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "helper_beside_it.py").write_text("WIDTH = 3\n")
    path = tmp_path / "model.py"
    path.write_text(SOURCE)
    yield path
    sys.modules.pop("helper_beside_it", None)


@pytest.mark.parametrize("name", ["Model", "build", "module"])
def test_loads_a_module_a_class_and_a_function(file, name):
    before = list(sys.path)
    assert isinstance(load_object(f"{file}:{name}"), nn.Linear)
    assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{file}", "Expected FILE.py:OBJECT"),
        ("{file}.gone:build", "There is no file"),
        ("{file}:gone", "has no 'gone'; it has 'Model', 'build'"),
        ("{file}:number.gone", "model.py:number' has no 'gone'; it has 'as_integer_ratio'"),
        ("{file}:Model.gone", "model.py:Model' has no 'gone'; it has .* more"),
        ("{file}:number", "is a int; expected a torch.nn.Module"),
        ("{file}:needs", "fails when called without arguments: TypeError"),
        ("{file}:wrong", "returned a int"),
    ],
)
def test_refuses_what_is_no_module(file, reference, message):
    with pytest.raises(ModelError, match=message):
        load_object(reference.format(file=file))


def test_a_file_that_fails_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import sys; sys.exit(3)")
    with pytest.raises(ModelError, match=r"cannot be imported: SystemExit: 3.*__main__"):
        load_object(f"{tmp_path / 'broken.py'}:build")


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_as_people_save_them(tmp_path, wrap, prefix):
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    weights = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save(weights if wrap is None else {wrap: weights, "epoch": 3}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert torch.equal(source.weight, target.weight)


def test_safetensors_and_tied_weights(tmp_path):
    from safetensors.torch import save_file

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
            self.b.weight = self.a.weight

    source, target = Tied(), Tied()
    save_file({"a.weight": source.a.weight.detach().clone()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target.b.weight, source.b.weight)
    (tmp_path / "bad.safetensors").write_bytes(b"\1\2")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_weights(target, tmp_path / "bad.safetensors")


def test_refuses_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(nn.Linear(2, 4).state_dict(), path)
    with pytest.raises(ModelError, match="do not fit the model: size mismatch"):
        load_weights(nn.Linear(2, 3), path)
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"needs 'weight', 'bias'; the file has 'other'"):
        load_weights(nn.Linear(2, 3), path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="holds no weights"):
        load_weights(nn.Linear(2, 3), path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="no weights file"):
        load_weights(nn.Linear(2, 3), path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"not a weights file|no weights file"):
        load_weights(nn.Linear(2, 3), path)


class Boom:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('ran').touch()",))


def test_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for thing in (nn.Linear(2, 3), Boom()):
        torch.save(thing, "w.pt")
        with pytest.raises(ModelError, match=r"without running code.*state_dict\(\)"):
            load_weights(nn.Linear(2, 3), "w.pt")
    assert not (tmp_path / "ran").exists()


def test_vocabulary_guesses(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes("a\r\nß\r\n\\n\r\n<unk>\r\n".encode())
    found = VocabularyOptions(path).make(4)
    assert found.tokens == ("a", "ß", "\n", "<unk>")
    assert (found.level, found.unknown, found.end_of_line) == ("char", "<unk>", "\n")
    found = VocabularyOptions(["the", "</s>"]).make(2)
    assert (found.level, found.unknown, found.end_of_line) == ("word", None, "</s>")
    found = VocabularyOptions(["the", "OOV", "."], unknown="OOV", end_of_line=".").make(3)
    assert (found.unknown, found.end_of_line) == ("OOV", ".")
    assert VocabularyOptions(None).make(3) is None


def test_vocabulary_refusals(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ModelError, match=r"not UTF-8 \(byte 2\)"):
        VocabularyOptions(path).make(2)
    with pytest.raises(ModelError, match="unknown token 'x' is not in"):
        VocabularyOptions(["a", "b"], unknown="x").make(2)
    with pytest.raises(ModelError, match="found the token 3"):
        VocabularyOptions(["a", 3]).make(2)


def test_only_keras_reserves_two_tokens(tmp_path):
    """Where two ids have no token, nobody but Keras says which two."""
    path = tmp_path / "v.json"
    for tokens, marks in ((["a", "the", "cat"], {}), (["OOV", "the", "cat"], {"unknown": "OOV"}),
                          (["<unk>", "the", "cat"], {})):  # fmt: skip
        path.write_text(json.dumps(tokens))
        said = VocabularyOptions(path, **marks)
        with pytest.raises(ModelError, match="has 3 tokens, the model's logits have 5"):
            said.make(5)
        notes = []
        if marks or "<unk>" in tokens:
            with pytest.raises(ModelError, match="has 3 tokens"):
                said.make(5, keras_reserved=True, notes=notes)
            assert not notes
        else:
            found = said.make(5, keras_reserved=True, notes=notes)
            assert found.tokens == ("<pad>", "[UNK]", "a", "the", "cat")
            assert found.unknown == "[UNK]"
            assert len(notes) == 1
            assert "<pad> and [UNK]" in notes[0]
