"""The study of samples/state_gradients: its engine, texts, vectors, verdicts, and a whole run."""

from __future__ import annotations

import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mnemoscope.analyzer.errors import CorpusError

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("torch", reason="the study trains with torch")
pytest.importorskip("safetensors", reason="the training script needs safetensors")


@pytest.fixture(scope="module", autouse=True)
def _path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "samples")
        patch.syspath_prepend(ROOT)
        yield


@pytest.fixture(scope="module")
def sg(_path):
    """The modules of the study."""
    from samples import state_gradients
    from samples.state_gradients import (
        claims,  # noqa: F401
        commands,  # noqa: F401
        corpora,  # noqa: F401
        engine,  # noqa: F401
        measures,  # noqa: F401
        scales,  # noqa: F401
        study,  # noqa: F401
        verdicts,  # noqa: F401
    )

    return state_gradients


# The engine ----------------------------------------------------------------------------------


def writes(name, text="x", log=None):
    def function(folder):
        if log is not None:
            log.append(name)
        (folder / name).write_text(text)

    return function


@pytest.fixture
def chain(sg, tmp_path):
    """Build an engine of steps a → b → c, and d apart; what ran is noted in `ran`."""
    ran: list[str] = []

    def build(settings=None, broken=()):
        def fails(folder):
            ran.append("broken")
            raise RuntimeError("out of luck")

        def step(name, needs=(), **more):
            function = fails if name in broken else writes(name, name, ran)
            given = (settings or {}).get(name, {})
            return sg.engine.Step(name, name, (name,), needs, function=function, settings=given,
                                  **more)  # fmt: skip

        steps = [step("a"), step("b", ("a",)), step("c", ("b",)), step("d", figures=("9z",))]
        return sg.engine.Engine(tmp_path / "run", steps, {}, lambda line: None)

    build.ran = ran
    return build


def test_everything_is_done_once(chain):
    assert chain().run().done == ["a", "b", "c", "d"]
    again = chain().run()
    assert again.skipped == ["a", "b", "c", "d"]
    assert chain.ran == ["a", "b", "c", "d"]


def test_a_changed_setting_redoes_what_follows_from_it(chain):
    chain().run()
    chain.ran.clear()
    changed = chain({"b": {"epochs": 2}})
    assert [changed.state(n) for n in "abcd"] == [
        "done", "settings changed", "settings changed", "done",
    ]  # fmt: skip
    assert changed.run().done == ["b", "c"]
    assert chain.ran == ["b", "c"]


def test_a_changed_setting_and_back_is_done_again(chain):
    chain().run()
    chain({"a": {"x": 1}}).run()
    assert chain().run().done == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["remove", "cut short", "stamp"])
def test_a_missing_or_damaged_output_is_made_again(chain, tmp_path, damage):
    engine = chain()
    engine.run()
    path = tmp_path / "run" / "b"
    if damage == "remove":
        path.unlink()
    elif damage == "cut short":
        path.write_text("")
    else:
        (tmp_path / "run" / "steps" / "b.json").write_text('{"key": ')
    assert chain().run().done == ["b"]
    assert path.read_text() == "b"


def test_a_checkpoint_goes_with_the_settings_that_it_was_made_with(sg, tmp_path):
    """`mnemoscope analyze --resume` would refuse that of another run."""
    seen = []

    def step(version):
        def function(folder):
            path = folder / "r.nc.checkpoint"
            seen.append(path.exists())
            if not path.exists():
                path.write_text("half")
                raise RuntimeError("killed")
            path.unlink()
            (folder / "r.nc").write_text("whole")

        return sg.engine.Step("a", "", ("r.nc",), function=function, settings={"v": version})

    for version in (1, 2, 2):
        outcome = sg.engine.Engine(tmp_path, [step(version)], {}, lambda x: None).run()
    assert seen == [False, False, True]
    assert outcome.done == ["a"]


def test_a_failing_step_stops_what_needs_it_only(chain, tmp_path):
    outcome = chain(broken=("b",)).run()
    assert outcome.done == ["a", "d"]
    assert outcome.failed == {"b": "RuntimeError: out of luck"}
    assert outcome.blocked == {"c": "needs b, which failed"}
    assert "out of luck" in (tmp_path / "run" / "logs" / "b.log").read_text()
    assert chain().run().done == ["b", "c"]  # mended


def test_only_runs_what_is_asked_for_and_what_it_needs(chain):
    assert chain().run(["b"]).done == ["a", "b"]
    assert chain().run(["9z"]).done == ["d"]
    with pytest.raises(KeyError, match="nothing"):
        chain().run(["nothing"])


def test_no_step_starts_that_would_end_too_late(sg, tmp_path):
    long = sg.engine.Step("long", "", ("long",), function=writes("long"), seconds=600)
    short = sg.engine.Step("short", "", ("short",), function=writes("short"), seconds=1)
    outcome = sg.engine.Engine(tmp_path, [long, short], {}, lambda x: None).run(minutes=5)
    assert outcome.left == ["long"]
    assert outcome.done == ["short"]


def test_a_step_that_lacks_something_is_not_available(sg, tmp_path):
    step = sg.engine.Step("a", "", ("a",), unavailable="no gensim")
    after = sg.engine.Step("b", "", ("b",), ("a",), function=writes("b"))
    page = sg.engine.Step("p", "", ("p",), function=writes("p"), optional=("b",))
    engine = sg.engine.Engine(tmp_path, [step, after, page], {}, lambda x: None)
    assert [engine.state(n) for n in "abp"] == ["not available", "not available", "to do"]
    outcome = engine.run()
    assert outcome.blocked["b"] == "not available: no gensim"
    assert outcome.done == ["p"]
    assert not outcome.failed


def test_a_page_is_written_again_when_more_is_there(sg, tmp_path):
    def build(unavailable):
        steps = [
            sg.engine.Step("a", "", ("a",), function=writes("a"), unavailable=unavailable),
            sg.engine.Step("p", "", ("p",), function=writes("p"), optional=("a",)),
        ]
        return sg.engine.Engine(tmp_path, steps, {}, lambda x: None)

    assert build("not yet").run().done == ["p"]
    assert build("not yet").run().skipped == ["p"]
    assert build(None).run().done == ["a", "p"]


def test_steps_come_after_what_they_need(sg, tmp_path):
    late = sg.engine.Step("b", "", ("b",), ("a",), function=writes("b"))
    with pytest.raises(ValueError, match="do not come before"):
        sg.engine.Engine(tmp_path, [late], {})


def test_commands_leave_a_log_and_their_output(sg, tmp_path):
    good = sg.engine.Step("good", "", ("out.txt",), command=("-c", "print('said')"),
                          stdout="out.txt")  # fmt: skip
    bad = sg.engine.Step("bad", "", ("none",), command=("-c", "raise SystemExit('no such luck')"))
    idle = sg.engine.Step("idle", "", ("never",), command=("-c", ""))
    after = sg.engine.Step("after", "", ("after",), ("idle",), function=writes("after"))
    engine = sg.engine.Engine(tmp_path, [good, bad, idle, after], {}, lambda x: None)
    outcome = engine.run()
    assert (tmp_path / "out.txt").read_text() == "said\n"
    assert "exit status 1" in outcome.failed["bad"]
    assert "no such luck" in outcome.failed["bad"]
    assert "never" in outcome.failed["idle"]  # it ended well without what it should make
    assert outcome.blocked["after"] == "needs idle, which failed"
    assert engine.stamp("good")["memory"] is None or engine.stamp("good")["memory"] > 2**20


def test_two_runs_cannot_share_a_folder(sg, tmp_path):
    pytest.importorskip("fcntl")
    engine = sg.engine.Engine(tmp_path, [], {})
    other = sg.engine.Engine(tmp_path, [], {})
    with engine.alone(), pytest.raises(sg.engine.Busy, match="Another run"), other.alone():
        pass
    with other.alone():
        pass


COUNTER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
log = Path("model/epochs")
if "--resume" not in sys.argv:
    assert not log.exists()
while (done := len(log.read_text()) if log.exists() else 0) < 6:
    log.write_text("x" * (done + 1))
    time.sleep(0.2 if "slow" in sys.argv else 0)
Path("model/done").write_text("resumed" if "--resume" in sys.argv else "whole")
"""
RUNNER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from types import SimpleNamespace
from samples.state_gradients.engine import Engine, stopped_by_signals
from tests_steps import step
with stopped_by_signals():
    Engine(Path({folder!r}), [step(slow=True)], {{}}).run()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_killed_run_goes_on_where_it_was(sg, tmp_path, how):
    """Also when the runner itself is killed outright; its step then ends with it, or is ended."""

    def step(epochs=6):
        return sg.engine.Step(
            "train", "", ("model/done",), command=("-c", COUNTER, "slow"), resume=("--resume",),
            resumable="model/epochs", scratch="model", settings={"epochs": epochs},
        )  # fmt: skip

    folder = tmp_path / "run"
    (tmp_path / "tests_steps.py").write_text(
        "from samples.state_gradients.engine import Step\n"
        f"COUNTER = {COUNTER!r}\n"
        "def step(slow):\n"
        "    return Step('train', '', ('model/done',), command=('-c', COUNTER, 'slow'),\n"
        "        resume=('--resume',), resumable='model/epochs', scratch='model',\n"
        "        settings={'epochs': 6})\n"
    )
    code = RUNNER.format(root=str(ROOT), folder=str(folder))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    epochs = folder / "model" / "epochs"
    deadline = time.monotonic() + 60
    while not (epochs.exists() and len(epochs.read_text()) >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if how == "SIGKILL":
        os.killpg(process.pid, signal.SIGKILL)  # as when the machine goes down
    else:
        process.terminate()
    process.wait(30)
    time.sleep(0.3)
    at = len(epochs.read_text())
    assert 2 <= at < 6
    time.sleep(0.5)
    assert len(epochs.read_text()) == at  # nothing was left running
    engine = sg.engine.Engine(folder, [step()], {}, lambda x: None)
    assert engine.state("train") == "to do"
    assert engine.run().done == ["train"]
    assert (folder / "model" / "done").read_text() == "resumed"
    # Other settings: what is there is thrown away.
    (folder / "steps" / "train.json").unlink()
    assert sg.engine.Engine(folder, [step(7)], {}, lambda x: None).run().done == ["train"]
    assert (folder / "model" / "done").read_text() == "whole"


def test_what_cannot_go_on_begins_anew(sg, tmp_path):
    code = COUNTER.replace(
        'if "--resume" not in sys.argv:', 'assert "--resume" not in sys.argv\nif 1:'
    )
    step = sg.engine.Step("train", "", ("model/done",), command=("-c", code), resume=("--resume",),
                          resumable="model/epochs", scratch="model")  # fmt: skip
    engine = sg.engine.Engine(tmp_path, [step], {}, lambda x: None)
    (tmp_path / "steps").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "epochs").write_text("xx")
    (tmp_path / "steps" / "train.begun").write_text(engine.keys["train"])
    assert engine.run().done == ["train"]
    assert (tmp_path / "model" / "done").read_text() == "whole"


# Texts ---------------------------------------------------------------------------------------

TREEBANK = """# text = Japan's it's cat
1\tJapan\tJapan\tPROPN\tNNP\tNumber=Sing\t3\tx\t_\t_
2\t's\t's\tPART\tPOS\t_\t1\tx\t_\t_
3-4\tit's\t_\t_\t_\t_\t_\t_\t_\t_
3\tit\tit\tPRON\tPRP\t_\t0\tx\t_\t_
4\t's\tbe\tAUX\tVBZ\t_\t3\tx\t_\t_
4.1\tgone\tgo\tVERB\tVBN\t_\t_\t_\t_\t_

1\t1 000\t1000\tNUM\tCD\t_\t0\tx\t_\t_

"""


def test_treebank(sg, tmp_path):
    path = tmp_path / "t.conllu"
    path.write_text(TREEBANK, encoding="utf-8")
    sentences = list(sg.corpora.join_genitives(sg.corpora.read_treebank(path)))
    assert [[w.form for w in s] for s in sentences] == [["Japan's", "it", "'s"], ["1_000"]]
    first = sentences[0][0]
    assert (first.xpos, first.features) == ("NNP", "Genitive=Yes|Number=Sing")
    assert list(sg.corpora.lexicon(sentences)) == [
        "'s\tVBZ", "1_000\tCD", "Japan's\tNNP", "it\tPRP",
    ]  # fmt: skip


def test_a_treebank_of_other_columns_is_refused(sg, tmp_path):
    path = tmp_path / "t.conllu"
    path.write_text("1\tword\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="line 1: expected 10 columns separated by tabs, found 2"):
        list(sg.corpora.read_treebank(path))


def test_the_tagged_text_has_the_tokens_of_the_plain_one(sg, tmp_path):
    path = tmp_path / "t.conllu"
    path.write_text(TREEBANK, encoding="utf-8")
    paths = dict.fromkeys(sg.corpora.PARTS, path)
    source = sg.corpora.Source("ewt", paths, tagged=True)
    sg.corpora.prepare(source, sg.scales.Amount(), tmp_path / "text")
    plain = (tmp_path / "text" / "valid.txt").read_text("utf-8").split("\n")
    tagged = list(sg.corpora.read_treebank(tmp_path / "text" / "valid.conllu"))
    assert [" ".join(w.form for w in s) for s in tagged] == plain[:-1]
    assert sg.corpora.tags_of(tmp_path / "text") == {"NNP", "PRP", "VBZ", "CD"}
    lexicon = tmp_path / "text" / "lexicon.tsv"
    assert sg.corpora.tags_of(tmp_path / "text", lexicon) == {"NNP", "PRP", "VBZ", "CD"}


def test_a_lexicon_leaves_rare_tags_out(sg):
    word = sg.corpora.Word("run", "run", "VERB", "VB", "_")
    sentence = [word] * 19 + [replace(word, xpos="NN")]
    assert list(sg.corpora.lexicon([sentence])) == ["run\tVB"]
    assert list(sg.corpora.lexicon([[*sentence, replace(word, xpos="NN")] * 1 + [
        replace(word, xpos="NN")]])) == ["run\tNN|VB"]  # fmt: skip


def test_texts_are_cut_to_whole_lines(sg, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(" a b \n \n c d e \n f \n", encoding="utf-8")
    paths = dict.fromkeys(sg.corpora.PARTS, path)
    source = sg.corpora.Source("ptb", paths, tagged=False)
    sg.corpora.prepare(source, sg.scales.Amount(train=8, valid=5, test=None), tmp_path / "text")
    read = {p: (tmp_path / "text" / f"{p}.txt").read_text() for p in (*sg.corpora.PARTS, "whole")}
    assert read["train"] == "a b\n\nc d e\n"  # 3 + 1 + 4 tokens with the ends of line
    assert read["valid"] == "a b\n\n"
    assert read["test"] == read["whole"] == "a b\n\nc d e\nf\n"


def test_where_corpora_are_looked_for(sg, tmp_path):
    with pytest.raises(sg.corpora.NoCorpus, match=r"en_ewt-ud-train\.conllu"):
        sg.corpora.find("ewt", tmp_path)
    with pytest.raises(sg.corpora.NoCorpus, match="--ptb"):
        sg.corpora.find("ptb", tmp_path)
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text("a\n")
    assert sg.corpora.find("ptb", tmp_path, tmp_path).paths["valid"].name == "ptb.valid.txt"


# Word vectors --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(_path):
    import word_vectors

    return word_vectors


WANTED = {"the": 0, "cat": 1, "missing": 2}


@pytest.mark.parametrize(
    "text",
    [
        "2 3\nthe 1 2 3\ncat 4 5 6e-1\n",  # word2vec
        "the 1 2 3\ncat 4 5 6e-1\n",  # GloVe
        "2 3\nthe 1 2 3 \ncat 4 5 0.6 \n",  # word2vec's own program ends lines with a space
        "the 1 2 3\r\ncat 4 5 .6",
        "x 0 0 0\n. . . 9 9 9\nthe 1 2 3\ncat 4 5 .6\nthe 7 7 7\n",  # a word with spaces; a double
        "other nan inf -inf\nthe 1 2 3\ncat 4 5 .6\n",  # not asked for: not looked at
    ],
)
def test_vectors_are_read(vectors, tmp_path, text):
    path = tmp_path / "v.txt"
    path.write_text(text, newline="")
    found, there = vectors.read_vectors(path, WANTED, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[1, 2, 3], [4, 5, 0.6], [0, 0, 0]], rtol=1e-6)
    assert there.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no vectors"),
        (b"2 3\n", "says that it holds 2 vectors but has 0"),
        (b"3 3\nthe 1 2 3\ncat 1 2 3\n", "says that it holds 3 vectors but has 2"),
        (b"2 300\nthe 1 2 3\n", "vectors of 300 entries; expected 3"),
        (b"the 1 2 3 4\n", "4 entries after 'the'; expected 3"),
        (b"the 1 2 3\ncat 1 2\n", "line 2: 2 entries after 'cat'; expected 3"),
        (b"the 1 two 3\n", "no number"),
        (b"the 1 nan 3\n", "not finite"),
        (b"the 1 1e39 3\n", "not finite"),
        (b"the 1 2 3\ncat \xff\xfe 2 3\n", "line 2 is not UTF-8"),
        (b"2 3\nthe \x00\x00\x80\x3f\x00\xf0", "not UTF-8"),  # word2vec's binary format
        (b"the" * 5000, "longer than"),
        (None, "cannot be read"),
    ],
)
def test_damaged_vectors(vectors, tmp_path, content, message):
    path = tmp_path / "v.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(vectors.VectorError, match=message) as caught:
        vectors.read_vectors(path, WANTED, 3)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_file_cut_short_is_refused_or_whole(vectors, tmp_path, cut):
    whole = b"3 2\nthe 1.5 2.5\ncat 3.5 4.5\nmissing 1 2\n"
    path = tmp_path / "v.txt"
    path.write_bytes(whole[:-cut])
    try:
        _, there = vectors.read_vectors(path, WANTED, 2)
    except vectors.VectorError:
        return
    assert there.all()


def test_vectors_come_back(vectors, tmp_path):
    made = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    vectors.write_vectors(tmp_path / "v.txt", list(WANTED), made)
    found, there = vectors.read_vectors(tmp_path / "v.txt", WANTED, 5)
    np.testing.assert_array_equal(found, made)
    assert there.all()


@pytest.fixture
def train(vectors, tmp_path):
    """Train a tiny model on made-up text, in one epoch."""
    import word_lm
    from click.testing import CliRunner

    rng = random.Random(1)
    text = "".join(f"{' '.join(rng.choices('abcdefg', k=6))}\n" for _ in range(120))
    (tmp_path / "text.txt").write_text(text)

    def run(*more):
        argv = ["train", tmp_path / "text.txt", "-o", tmp_path / "run", "--embedding", "3",
                "--hidden", "4", "--epochs", "1", "--batch", "2", "--steps", "10", "--no-export",
                *more]  # fmt: skip
        return CliRunner().invoke(word_lm.main, [str(a) for a in argv])

    return run


@pytest.mark.parametrize("frozen", [True, False])
def test_training_begins_with_given_vectors(train, tmp_path, frozen):
    import word_lm
    from safetensors.torch import load_file

    path = tmp_path / "v.txt"
    path.write_text("a 1 2 3\nb -1 -2 -3\nother 0 0 0\n")
    said = train("--embeddings", path, *(["--freeze-embeddings"] if frozen else []))
    assert said.exit_code == 0, said.output
    assert "2 of 9 words have a vector" in said.output
    words = (tmp_path / "run" / "vocabulary.txt").read_text().split("\n")
    config, _ = word_lm.read_run(tmp_path / "run")
    begun = word_lm.initial_model(config, tmp_path / "run").embedding.weight.detach()
    assert begun[words.index("a")].tolist() == [1, 2, 3]
    assert begun[words.index("c")].abs().max() <= 0.05
    trained = load_file(tmp_path / "run" / "best.safetensors")["embedding.weight"]
    assert bool((trained == begun).all()) is frozen
    # Going on with other vectors is refused, and leaves the run as it was.
    before = (tmp_path / "run" / "embeddings.safetensors").read_bytes()
    path.write_text("a 3 2 1\n")
    frozen_too = ["--freeze-embeddings"] if frozen else []
    said = train("--embeddings", path, *frozen_too, "--resume")
    assert said.exit_code == 2
    assert "another embeddings" in said.output
    assert (tmp_path / "run" / "embeddings.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--freeze-embeddings"], "give --embeddings"),
        (["--embeddings", "nowhere.txt"], "does not exist"),
    ],
)
def test_bad_calls_of_training(train, tmp_path, arguments, message):
    said = train(*arguments)
    assert said.exit_code == 2
    assert message in said.output
    assert not (tmp_path / "run").exists()


def test_training_on_a_device_that_is_not_there(train, tmp_path):
    import torch

    if torch.cuda.is_available():
        assert train("--device", "cuda").exit_code == 0
        assert "cuda" in train("--device", "cuda", "--resume").output
        return
    said = train("--device", "cuda")
    assert said.exit_code == 2
    assert "no CUDA device" in said.output
    assert not (tmp_path / "run").exists()


def test_vectors_of_another_size_are_refused(train, tmp_path):
    path = tmp_path / "v.txt"
    path.write_text("a 1 2\n")
    said = train("--embeddings", path)
    assert said.exit_code == 2
    assert "expected 3 (--embedding)" in said.output
    path.write_text("zebra 1 2 3\n")
    assert "for no word of the vocabulary" in train("--embeddings", path).output
    assert not (tmp_path / "run").exists()


# Verdicts ------------------------------------------------------------------------------------

NAN = math.nan


@pytest.mark.parametrize(
    ("difference", "error", "verdict"),
    [(1, 0.4, "holds"), (1, 0.6, "cannot tell"), (-1, 0.4, "does not"), (-1, 0.6, "cannot tell"),
     (0, 0, "cannot tell"), (NAN, 1, "cannot tell"), (1, NAN, "cannot tell"),
     (1, -1, "cannot tell"), (math.inf, 1, "cannot tell")],
)  # fmt: skip
def test_larger(sg, difference, error, verdict):
    assert sg.verdicts.larger(difference, error) == verdict
    assert sg.verdicts.smaller(-difference, error) == verdict


@pytest.mark.parametrize(
    ("distance", "error", "verdict"),
    [(0.1, 0.1, "holds"), (-0.1, 0.1, "holds"), (0.4, 0.1, "cannot tell"), (0.8, 0.1, "does not"),
     (-0.8, 0.1, "does not"), (0.1, 9, "cannot tell"), (NAN, 0.1, "cannot tell")],
)  # fmt: skip
def test_within(sg, distance, error, verdict):
    assert sg.verdicts.within(distance, error, 0.5) == verdict


def test_all_of(sg):
    all_of = sg.verdicts.all_of
    assert all_of(["holds", "holds"]) == "holds"
    assert all_of(["holds", "cannot tell"]) == "cannot tell"
    assert all_of(["holds", "cannot tell", "not run"]) == "not run"
    assert all_of(["not run", "does not", "holds", "cannot tell"]) == "does not"
    assert all_of([]) == "not run"


@pytest.mark.parametrize(
    ("value", "error", "floor", "gone", "present"),
    [
        (1e-12, 1e-13, 1e-14, "holds", "does not"),
        (1e-8, 1e-9, 1e-9, "does not", "holds"),
        (1e-8, 1e-9, 2e-8, "cannot tell", "cannot tell"),  # below its noise floor
        (1.1e-10, 1e-10, 1e-14, "cannot tell", "cannot tell"),
        (NAN, 1, 1, "cannot tell", "cannot tell"),
        (1e-8, 1e-9, NAN, "cannot tell", "cannot tell"),
    ],
)
def test_gone_and_present(sg, value, error, floor, gone, present):
    assert sg.verdicts.gone(value, error, floor, 1e-10) == gone
    assert sg.verdicts.present(value, error, floor, 1e-10) == present


# Claims, on made-up results ------------------------------------------------------------------

DELAY = np.arange(51)


def curve(sg, sigma1, *, error=0.01, floor=1e-20, share1=0.3, share_error=0.01, blocks=None):
    """A curve; `error` is a share of σ₁."""
    sigma1 = np.broadcast_to(np.asarray(sigma1, float), DELAY.shape).copy()
    whole = np.ones(51)
    return sg.measures.Memory(
        DELAY, sigma1, error * sigma1, floor * whole, share1 * whole, share_error * whole,
        np.minimum(1, 2 * share1 * whole), share_error * whole, blocks=blocks,
    )  # fmt: skip


def exponential(rate, scale=1.0):
    return scale * np.exp(-rate * DELAY)


def slowing(scale=1.0):
    """Fast at first, slow later, as a trained model does."""
    return scale * (0.95 * np.exp(-0.8 * DELAY) + 0.05 * np.exp(-0.05 * DELAY))


def verdict_of(sg, claim, *, twins=True, **results):
    """The verdict on made-up curves; `twins` gives the base model others with other seeds."""
    memory = dict(results.pop("memory", {}))
    if twins and "base_c" in memory:
        for name, factor in (("seed2_c", 1.001), ("seed3_c", 0.999)):
            base = memory["base_c"]
            memory.setdefault(name, replace(base, sigma1=base.sigma1 * factor,
                                            share1=base.share1 * factor))  # fmt: skip
    names = {name.replace("_", ".").replace("raw", "-raw"): m for name, m in memory.items()}
    found = getattr(sg.claims, claim)(sg.measures.Results(memory=names, **results))
    assert found.claim
    assert found.paper
    assert found.rule
    return found.verdict


def test_every_claim_says_not_run_without_results(sg):
    for finding in sg.claims.judge(sg.measures.Results()):
        assert finding.verdict == "not run", finding.claim
        assert finding.ours == "not run"
    assert len({f.claim for f in sg.claims.judge(sg.measures.Results())}) == len(sg.claims.CLAIMS)


def test_fast_not_exponential(sg):
    def verdict(sigma1, **more):
        return verdict_of(sg, "fast_not_exponential", memory={"base_c": curve(sg, sigma1, **more)})

    assert verdict(slowing()) == "holds"
    assert verdict(exponential(0.5)) == "does not"  # fast, and an exponential
    assert verdict(exponential(0.5), error=0.3) == "cannot tell"
    assert verdict(exponential(0.1)) == "does not"  # not fast
    assert verdict(np.exp(-0.3 * DELAY - 0.02 * DELAY**2)) == "does not"  # faster later
    assert verdict(slowing(), error=2.0, floor=0) == "cannot tell"
    assert verdict(slowing(), floor=0.03) == "cannot tell"  # all of it late is noise


def test_the_exponential_is_tested_with_the_blocks_where_they_are(sg):
    # Blocks that agree on the shape and not on the level: the rates are known far better than
    # the errors of single delays allow.
    levels = np.linspace(-0.3, 0.3, 10)[:, None]
    sigma1 = exponential(0.5) * np.exp(-0.001 * (DELAY - 25.0) ** 2 * (DELAY < 25))
    memory = curve(sg, sigma1, error=0.3, blocks=np.log(sigma1) + levels)
    assert sg.measures.rate_change(memory).error == pytest.approx(0, abs=1e-12)
    assert sg.measures.rate_change(replace(memory, blocks=None)).error > 0.05


def test_the_jackknife_of_a_rate(sg):
    rng = np.random.default_rng(0)
    blocks = rng.normal(0, 0.1, (10, 51)) - 0.5 * DELAY
    memory = curve(sg, exponential(0.5), blocks=blocks)
    moved = (blocks[:, 0] - blocks[:, 10]) / 10
    expected = math.sqrt(9 / 10 * ((moved - moved.mean()) ** 2).sum())
    assert sg.measures.rate(memory, 0, 10).error == pytest.approx(expected, rel=1e-12)
    assert sg.measures.rate(memory, 0, 10).value == pytest.approx(0.5, rel=1e-12)
    plain = replace(memory, blocks=None)
    assert sg.measures.rate(plain, 0, 10).error == pytest.approx(0.002, rel=1e-12)


def test_beyond_twenty(sg):
    def verdict(sigma1, **more):
        return verdict_of(sg, "beyond_twenty", memory={"base_c": curve(sg, sigma1, **more)})

    assert verdict(slowing()) == "holds"
    assert verdict(exponential(0.7), floor=1e-30) == "does not"  # clear of noise, and nothing
    assert verdict(slowing(), floor=0.05) == "cannot tell"
    assert verdict(slowing(), error=0.6) == "cannot tell"


def test_selectivity_grows(sg):
    def verdict(share1, **more):
        memory = {"base_c": curve(sg, slowing(), share1=share1, **more)}
        return verdict_of(sg, "selectivity_grows", memory=memory)

    assert verdict(0.2 + 0.01 * DELAY) == "holds"
    assert verdict(0.8 - 0.01 * DELAY) == "does not"
    assert verdict(np.full(51, 0.3)) == "cannot tell"
    assert verdict(0.2 + 0.01 * DELAY, floor=0.06) == "cannot tell"  # noise is selective too


def test_whitening_scales(sg):
    def verdict(white, raw):
        memory = {"base_c": curve(sg, white), "baseraw_c": curve(sg, raw)}
        return verdict_of(sg, "whitening_scales", memory=memory)

    assert verdict(slowing(0.3), slowing()) == "holds"
    assert verdict(slowing(), slowing(0.3)) == "does not"
    assert verdict(slowing(), slowing(1.001)) == "cannot tell"


def test_seeds_agree(sg):
    def verdict(*scales, **more):
        names = ("base_c", "seed2_c", "seed3_c")
        memory = {n: curve(sg, slowing(s), **more) for n, s in zip(names, scales, strict=False)}
        return verdict_of(sg, "seeds_agree", memory=memory, twins=False)

    assert verdict(1, 1.1, 0.95) == "holds"
    assert verdict(1, 1.1, 3) == "does not"
    assert verdict(1, 1.1, 1.48) == "cannot tell"
    assert verdict(1, 1.1, 0.95, error=0.4) == "cannot tell"
    assert verdict(1, 1.1) == "not run"


def test_random_exponential(sg):
    def verdict(sigma1, **more):
        memory = {"random_c": curve(sg, sigma1, **{"floor": 1e-30, "error": 1e-3, **more})}
        return verdict_of(sg, "random_exponential", memory=memory)

    assert verdict(exponential(0.7)) == "holds"
    assert verdict(slowing()) == "does not"
    assert verdict(exponential(0.7), error=0.4) == "cannot tell"
    assert verdict(exponential(0.7), floor=0.01) == "cannot tell"


def test_random_faster(sg):
    def verdict(one, **more):
        memory = {"random_c": curve(sg, one, **more), "base_c": curve(sg, slowing())}
        return verdict_of(sg, "random_faster", memory=memory)

    assert verdict(exponential(0.7, 0.1)) == "holds"
    assert verdict(exponential(0.01, 10)) == "does not"
    assert verdict(slowing()) == "cannot tell"


def both(sg, a, b, one, other, seeds=(), **more):
    """Two curves of selectivity, and other seeds of the second."""
    memory = {a: curve(sg, slowing(), share1=one, **more), b: curve(sg, slowing(), share1=other)}
    for name, value in zip(("seed2_c", "seed3_c"), seeds, strict=False):
        memory[name] = curve(sg, slowing(), share1=value)
    return memory


@pytest.mark.parametrize(
    ("claim", "a"),
    [("random_less_selective", "random_c"), ("pretrained_less_selective", "pretrained_c")],
)
def test_less_selective(sg, claim, a):
    def verdict(one, other, **more):
        return verdict_of(sg, claim, memory=both(sg, a, "base_c", one, other, **more))

    assert verdict(0.2, 0.4) == "holds"
    assert verdict(0.4, 0.2) == "does not"
    assert verdict(0.39, 0.4) == "cannot tell"
    # What two seeds differ by is no finding, and without seeds nothing is known of that.
    assert verdict(0.2, 0.4, seeds=(0.1, 0.7)) == "cannot tell"
    alone = both(sg, a, "base_c", 0.2, 0.4)
    assert verdict_of(sg, claim, memory=alone, twins=False) == "cannot tell"
    assert verdict(0.2, 0.4, floor=1.0) == "cannot tell"


def test_hidden_below_cell(sg):
    def verdict(hidden, **more):
        memory = {"base_h": curve(sg, hidden, **more), "base_c": curve(sg, slowing())}
        return verdict_of(sg, "hidden_below_cell", memory=memory)

    assert verdict(slowing(0.4)) == "holds"
    assert verdict(slowing(2)) == "does not"
    assert verdict(slowing(0.4) * (1 + 5 * (DELAY == 20))) == "does not"  # one delay is enough
    assert verdict(slowing(0.99)) == "cannot tell"
    assert verdict(slowing(0.4), floor=1.0) == "cannot tell"


def test_gru(sg):
    def memory(gru, share1):
        return {
            "gru_h": curve(sg, gru, share1=share1),
            "base_c": curve(sg, slowing()),
            "base_h": curve(sg, slowing(0.3)),
        }

    assert verdict_of(sg, "gru_between", memory=memory(slowing(0.6), 0.2)) == "holds"
    assert verdict_of(sg, "gru_between", memory=memory(slowing(2), 0.2)) == "does not"
    assert verdict_of(sg, "gru_between", memory=memory(slowing(0.99), 0.2)) == "cannot tell"
    assert verdict_of(sg, "gru_less_selective", memory=memory(slowing(), 0.2)) == "holds"
    assert verdict_of(sg, "gru_less_selective", memory=memory(slowing(), 0.5)) == "does not"
    assert verdict_of(sg, "gru_less_selective", memory=memory(slowing(), 0.29)) == "cannot tell"


def test_rnn(sg):
    def verdict(claim, sigma1, **more):
        memory = {"rnn_h": curve(sg, sigma1, **more), "base_c": curve(sg, slowing())}
        return verdict_of(sg, claim, memory=memory)

    assert verdict("rnn_gone", exponential(1.5)) == "holds"
    assert verdict("rnn_gone", exponential(0.5)) == "does not"
    assert verdict("rnn_gone", exponential(0.5), floor=1e-3) == "cannot tell"
    assert verdict("rnn_shorter", exponential(1.5)) == "holds"
    assert verdict("rnn_shorter", exponential(0.1)) == "does not"
    assert verdict("rnn_shorter", exponential(1.5), floor=0.2) == "cannot tell"


def test_hidden_size(sg):
    def verdict(claim, small, large, scale):
        memory = {
            "small_c": curve(sg, slowing(scale), share1=small),
            "base_c": curve(sg, slowing(), share1=0.3),
            "large_c": curve(sg, slowing(), share1=large),
        }
        return verdict_of(sg, claim, memory=memory)

    assert verdict("larger_less_selective", 0.4, 0.2, 1) == "holds"
    assert verdict("larger_less_selective", 0.2, 0.4, 1) == "does not"
    assert verdict("larger_less_selective", 0.4, 0.299, 1) == "cannot tell"
    assert verdict("small_smaller", 0.4, 0.2, 0.5) == "holds"
    assert verdict("small_smaller", 0.4, 0.2, 2) == "does not"
    assert verdict("small_smaller", 0.4, 0.2, 0.99) == "cannot tell"


def test_pretrained_longer(sg):
    def verdict(sigma1):
        memory = {"pretrained_c": curve(sg, sigma1), "base_c": curve(sg, slowing())}
        return verdict_of(sg, "pretrained_longer", memory=memory)

    assert verdict(exponential(0.05)) == "holds"
    assert verdict(exponential(0.7, 0.1)) == "does not"
    assert verdict(slowing(2)) == "cannot tell"  # larger, not slower


def test_wikipedia_longer(sg):
    def verdict(scale, other="ewt", **more):
        memory = {
            "wikitext-2_c": curve(sg, slowing(scale), **more),
            f"{other}_c": curve(sg, slowing()),
            "base_c": curve(sg, slowing()),  # whose twins tell what seeds make
        }
        return verdict_of(sg, "wikipedia_longer", memory=memory)

    assert verdict(2) == "holds"
    assert verdict(2, "ptb") == "holds"
    assert verdict(0.5) == "does not"
    assert verdict(1.001) == "cannot tell"
    assert verdict(2, floor=1.0) == "cannot tell"


# Claim → its delays, the curve that may be noise, and the curves under which it holds. Not here:
# whitening_scales, whose rates ask for more clear delays than half.
COMPARISONS = {
    "selectivity_grows": ("LONG", "base_c", {}),
    "seeds_agree": ("COMPARED", "seed3_c", {}),
    "random_faster": ("COMPARED", "random_c", {"random_c": exponential(0.7, 0.1)}),
    "random_less_selective": ("LONG", "random_c", {"random_c": slowing()}),
    "hidden_below_cell": ("COMPARED", "base_h", {"base_h": slowing(0.4)}),
    "gru_between": ("COMPARED", "gru_h", {"gru_h": slowing(0.6), "base_h": slowing(0.3)}),
    "gru_less_selective": ("LONG", "gru_h", {"gru_h": slowing(0.6), "base_h": slowing(0.3)}),
    "small_smaller": ("COMPARED", "small_c", {"small_c": slowing(0.5)}),
    "larger_less_selective": ("SHORT", "large_c", {"small_c": slowing(), "large_c": slowing()}),
    "pretrained_longer": ("COMPARED", "pretrained_c", {"pretrained_c": exponential(0.05, 2)}),
    "pretrained_less_selective": ("SHORT", "pretrained_c", {"pretrained_c": slowing()}),
    "wikipedia_longer": (
        "LATE", "wikitext-2_c", {"wikitext-2_c": slowing(2), "ewt_c": slowing()},
    ),
}  # fmt: skip
SELECTIVITY = {"base_c": 0.3 + 0.003 * DELAY, "base_h": 0.4, "small_c": 0.5}


@pytest.mark.parametrize("claim", COMPARISONS)
def test_one_clear_delay_does_not_speak_for_all(sg, claim):
    """A claim holds over half of its delays, and is not told over fewer."""
    which, noisy, curves = COMPARISONS[claim]
    delays = getattr(sg.claims, which)
    made = {"base_c": slowing(), "seed2_c": slowing(1.01), "seed3_c": slowing(0.99), **curves}
    memory = {n: curve(sg, s, share1=SELECTIVITY.get(n, 0.2)) for n, s in made.items()}
    for twin in ("seed2_c", "seed3_c"):
        memory[twin] = replace(memory["base_c"], sigma1=memory[twin].sigma1)

    def verdict(clear):
        # Decay rates end at 0 and 20: those stay clear.
        lost = [d for d in delays if d not in (0, 20)][: len(delays) - clear]
        floor = np.where(np.isin(DELAY, lost), 1e9, memory[noisy].floor)
        noise = replace(memory[noisy], floor=floor)
        return verdict_of(sg, claim, memory={**memory, noisy: noise})

    half = (len(delays) + 1) // 2
    assert verdict(len(delays)) == "holds"
    assert verdict(half) == "holds"
    assert verdict(half - 1) == "cannot tell"


def test_common_delays(sg):
    def of(*noise):
        return replace(curve(sg, slowing()), floor=np.where(np.isin(DELAY, noise), 1e9, 0))

    compared = sg.claims.COMPARED
    common = sg.measures.common_delays
    assert common(of(), of(), among=compared) == list(compared)
    assert common(of(0, 1), of(2, 5), among=compared) == [10, 15, 20, 30, 40]
    assert common(of(0, 1, 40), of(2, 5), among=compared) == []
    assert common(of(10, 15, 20, 30, 40), among=compared) == []  # 0, 1, 2 and 5 are left
    assert common(of(), among=(49, 50, 51, 52)) == [49, 50]
    assert common(of(), among=(50, 51, 52)) == []
    # What passes always has a delay of 10 or later.
    assert 2 * sum(d < 10 for d in compared) < len(compared)


def test_classes(sg):
    def of(scale, *, floor=1e-20, last=1.0, middle=1.0):
        sigma1 = slowing(scale) * np.where(np.arange(51) == 15, middle, 1)
        made = curve(sg, sigma1, floor=floor)
        total = 3 * made.sigma1 * np.where(np.arange(51) == 50, last, 1)
        return replace(made, total=total, total_error=0.01 * total, total_floor=2 * made.floor)

    def verdict(nouns=2.0, determiners=0.5, **more):
        classes = {
            "nouns": of(nouns, **more),
            "verbs": of(1.5),
            "determiners": of(determiners),
            "conjunctions-prepositions": of(0.4),
        }
        return verdict_of(sg, "content_above_function", classes=classes)

    assert verdict() == "holds"
    assert verdict(determiners=5) == "does not"
    assert verdict(nouns=0.501) == "cannot tell"
    assert verdict(last=0.1) == "does not"  # at the largest delay nouns lie below
    assert verdict(floor=0.02) == "cannot tell"  # at the largest delay nouns are noise
    assert verdict(middle=0.1) == "does not"  # the claim is of every delay
    few = np.where(np.isin(np.arange(51), (1, 2, 5, 10, 15)), 1e9, 0)
    assert verdict(floor=few) == "cannot tell"  # clear at four of nine delays
    few[15] = 0
    assert verdict(floor=few) == "holds"


def words(n=400, slope=-0.3, b_slope=0.02, floor=0.01, followed=10):
    rng = np.random.default_rng(1)
    frequency = np.exp(rng.uniform(0, 8, n))
    sigma1 = np.exp(slope * np.log(frequency) + rng.normal(0, 0.2, n))
    b = 0.3 + b_slope * np.log(frequency) + rng.normal(0, 0.02, n)
    floors = np.broadcast_to(floor, n) if np.ndim(floor) == 0 else floor(frequency)
    return {
        "word": np.array([f"w{i}" for i in range(n)]), "frequency": frequency, "sigma1": sigma1,
        "floor": floors, "b": b, "occurrences": np.broadcast_to(followed, n),
    }  # fmt: skip


def test_words(sg):
    def verdict(claim, **more):
        return verdict_of(sg, claim, words=words(**more))

    assert verdict("frequent_smaller") == "holds"
    assert verdict("frequent_smaller", slope=0.3) == "does not"
    assert verdict("frequent_smaller", slope=0.0) == "cannot tell"
    assert verdict("frequent_smaller", floor=1e9) == "cannot tell"
    assert verdict("frequent_faster") == "holds"
    assert verdict("frequent_faster", b_slope=-0.02) == "does not"
    assert verdict("frequent_faster", b_slope=0) == "cannot tell"


@pytest.mark.parametrize("claim", ["rnn_gone", "rnn_shorter"])
def test_of_a_model_that_learnt_nothing_no_claim_is_judged(sg, claim):
    memory = {"rnn_h": curve(sg, exponential(1.5)), "base_c": curve(sg, exponential(0.3))}
    of = {"test": 70_000.0, "unigram": 265.0}
    for perplexity, wanted in (({}, "holds"), ({"rnn": of}, "cannot tell"),
                               ({"rnn": {**of, "test": 200.0}}, "holds")):  # fmt: skip
        assert verdict_of(sg, claim, memory=memory, perplexity=perplexity) == wanted


def test_the_figure_of_two_words_takes_what_words_wrote(sg, monkeypatch, tmp_path):
    """A rare word is chosen by how well its fit is known."""
    table = SimpleNamespace(
        word=np.array(["odd", "rare", "known", "the"]),
        frequency=np.array([3, 3, 50, 900]),
        occurrences=np.full(4, 5),
        sigma1=np.ones((4, 2)),
        noise_floor=np.zeros((4, 2)),
        b=np.full(4, 0.2),
        b_stderr=np.array([0.1, 0.01, 0.001, 0.001]),
    )
    module = SimpleNamespace(open_words=lambda path: None, word_tables=lambda *a, **k: [table])
    monkeypatch.setattr(sg.commands, "import_module", lambda name: module)
    asked = []

    def word_curves(result, figure, chosen, state):
        asked.extend(chosen)
        return ["-c", f"open({figure!r}, 'w').close()"]

    monkeypatch.setattr(sg.commands, "word_curves", word_curves)
    sg.figures.draw_word_curves(tmp_path, tmp_path / "9a.png")
    assert (tmp_path / "9a.png").exists()
    assert asked == ["the", "rare"]


@pytest.mark.parametrize("claim", ["frequent_smaller", "frequent_faster"])
def test_words_followed_differently_often_tell_nothing(sg, claim):
    """Few occurrences alone raise σ₁ and lower b."""
    made = words(followed=np.arange(400) + 3)
    assert verdict_of(sg, claim, words=made) == "cannot tell"
    assert verdict_of(sg, claim, words=words()) == "holds"


@pytest.mark.parametrize("number", [2, 3, 5])
def test_few_seeds_do_not_make_findings(sg, number):
    """Two models of one kind differ by more than two errors in about one case of twenty."""
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(2000):
        between = sg.measures.between_seeds(rng.standard_normal(number))
        difference = rng.standard_normal() - rng.standard_normal()
        false += sg.verdicts.larger(difference, math.sqrt(2 * between)) != "cannot tell"
    assert 0.03 < false / 2000 < 0.065
    assert math.isnan(sg.measures.between_seeds([1.0]))


def properties(error=0.02, band=0.3, clear=True, **m):
    return {
        name: {"delay": [0, 20], "m": list(np.broadcast_to(v, 2) if clear else [v, NAN]),
               "m_stderr": [error, error],
               "band": [band, band], "separability": None}
        for name, v in m.items()
    }  # fmt: skip


def test_properties(sg):
    def verdict(claim, g=0.8, c=0.6, n=0.4, third=0.3, **more):
        given = {"genitive": g, "common-proper": c, "number": n, "third-person": third}
        given |= {"tense": third, "participle": third}
        return verdict_of(sg, claim, properties=properties(**more, **given))

    assert verdict("noun_order") == "holds"
    assert verdict("noun_order", g=0.3) == "does not"
    assert verdict("noun_order", c=0.41) == "cannot tell"
    assert verdict("noun_order", band=0.79) == "cannot tell"  # any direction does as well
    assert verdict("noun_order", error=NAN) == "cannot tell"
    assert verdict("nouns_above_verbs") == "holds"
    assert verdict("nouns_above_verbs", third=0.95) == "does not"
    assert verdict("nouns_above_verbs", third=0.59) == "cannot tell"
    assert verdict("number_fades", n=(0.6, 0.3)) == "holds"
    assert verdict("number_fades", n=(0.3, 0.6)) == "does not"
    assert verdict("number_fades", n=(0.6, 0.6)) == "cannot tell"
    assert verdict("number_fades", clear=False) == "cannot tell"
    without = properties(number=0.4, tense=0.3)
    assert verdict_of(sg, "nouns_above_verbs", properties=without) == "not run"


def test_perplexities(sg):
    def verdict(claim, seeds=True, **test):
        given = {"base": 100, "gru": 110, "small": 120, "large": 92, "pretrained": 90, "rnn": 500}
        given |= {"seed2": 101, "seed3": 99} if seeds else {}
        given |= test
        found = {k: {"test": float(v), "unigram": 400.0} for k, v in given.items()}
        return verdict_of(sg, claim, perplexity=found)

    assert verdict("rnn_perplexity") == "holds"
    assert verdict("rnn_perplexity", rnn=80) == "does not"
    assert verdict("rnn_perplexity", rnn=102) == "cannot tell"
    assert verdict("rnn_perplexity", seeds=False) == "cannot tell"
    assert verdict("perplexity_order") == "holds"
    assert verdict("perplexity_order", large=120) == "does not"
    assert verdict("perplexity_order", large=99.5) == "cannot tell"


def test_what_commands_print_is_read(sg, tmp_path):
    row = {"delay": 0, "m": 0.5, "m_stderr": None, "m_random_high": 0.8, "m_shuffled_high": 0.9,
           "clear_of_noise": True}  # fmt: skip
    noise = row | {"delay": 1, "clear_of_noise": False}
    path = tmp_path / "p.json"
    path.write_text(
        json.dumps({"curves": [{"rows": [row, noise]}], "properties": [{"separability": None}]})
    )
    found = sg.commands.read_property(path)
    assert found["band"] == [0.9, 0.9]
    assert found["m"][0] == 0.5
    assert math.isnan(found["m"][1])
    assert math.isnan(found["m_stderr"][0])
    path.write_text(json.dumps({"curves": []}))
    with pytest.raises(ValueError, match="not what mnemoscope property prints"):
        sg.commands.read_property(path)
    one = {"set": "N-V (2)", "types": 9, "accuracy": 0.5, "stderr": 0.1, "majority": 0.6,
           "shuffled": None, "separable": False}  # fmt: skip
    path.write_text(json.dumps({"sets": [one]}))
    rows = tuple(sg.commands.read_separability(path))
    table = sg.claims._separability_table(sg.measures.Results(separability=rows))
    assert table[-1] == "| N-V (2) | 9 | 50.0 | 10.0 | 60.0 | – | no | 77.2 |"
    path.write_text(json.dumps({"sets": [{}]}))
    with pytest.raises(ValueError, match="not what mnemoscope separability prints"):
        sg.commands.read_separability(path)


# A whole study -------------------------------------------------------------------------------

TAGGED = {
    "DT": ["the", "a"], "NN": ["cat", "dog", "house"], "NNS": ["cats", "dogs", "houses"],
    "NNP": ["Ann", "Bob"], "VBZ": ["sees", "likes"], "VBD": ["saw", "liked"], "IN": ["in", "on"],
    "JJ": ["red", "old"], "RB": ["often"], "PRP": ["it"], "CC": ["and"], "VBP": ["see", "like"],
    "VBG": ["seeing"], "VBN": ["seen"], "NNPS": ["Danes"],
}  # fmt: skip
BLANK = "\t_" * 5
PATTERNS = ("DT NN VBZ DT JJ NN", "NNP VBD DT NNS IN DT NN", "NNS CC NNPS VBP PRP RB",
            "PRP VBD VBG VBN NNS", "NNP POS NN VBZ IN NNP")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small corpora laid out as those beside the project are."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(3)

    def sentence():
        tags = rng.choice(PATTERNS).split()
        return [("'s" if t == "POS" else rng.choice(TAGGED[t]), t) for t in tags]

    for sub in ("ud-english-ewt", "wikitext-2", "ptb"):
        (folder / sub).mkdir()
    for part, name, count in (("train", "train", 420), ("valid", "dev", 120), ("test", "test", 60)):
        rows = "".join(
            "".join(f"{i}\t{w}\t{w}\tX\t{t}\t_\t_\t_\t_\t_\n" for i, (w, t) in enumerate(s, 1))
            + "\n"
            for s in (sentence() for _ in range(count))
        )
        path = folder / "ud-english-ewt" / f"en_ewt-ud-{name}.conllu"
        path.write_text(rows, encoding="utf-8")
        plain = "".join(f" {' '.join(w for w, _ in sentence())} \n" for _ in range(count))
        (folder / "wikitext-2" / f"{part}.txt").write_text(plain, encoding="utf-8")
        (folder / "ptb" / f"ptb.{part}.txt").write_text(plain.lower(), encoding="utf-8")
    return folder


def in_process(argv, folder, out, err):
    """Run a step's command here: starting Python and torch twenty times takes a minute."""
    import click

    before = os.getcwd()
    os.chdir(folder)
    from contextlib import redirect_stderr, redirect_stdout

    binary = "b" in out.mode
    text = io.TextIOWrapper(out, encoding="utf-8", write_through=True) if binary else out
    try:
        if argv[1] == "-m":
            from mnemoscope.cli.main import main

            args = argv[3:]
        else:
            main = __import__(Path(argv[1]).stem).main
            args = argv[2:]
        with redirect_stdout(text), redirect_stderr(err):
            main.main(list(args), standalone_mode=False)  # not main(): that watches a fork
    except click.ClickException as error:
        err.write(error.format_message())
        return 2, None
    finally:
        os.chdir(before)
        if binary:
            text.detach()
    return 0, None


@pytest.fixture(scope="module")
def small_scale(sg):
    return replace(sg.scales.SCALES["tiny"], positions=120, large_positions=120, hidden=(4, 5, 6))


@pytest.fixture(scope="module")
def run(sg, data, small_scale, tmp_path_factory):
    """A study of five models at the smallest scale: its folder, engine and outcome."""
    import torch

    from samples.state_gradients import __main__ as command

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    options = sg.study.Options(small_scale, "tiny", data)
    steps = sg.study.steps(options)
    engine = sg.engine.Engine(folder, steps, {"samples": ROOT / "samples"}, print, in_process)
    command._describe(folder, options, steps)
    outcome = engine.run(["5a", "5b", "6b", "8a", "10", "page"])
    torch.set_num_threads(threads)
    return folder, engine, outcome


def test_a_study(run):
    folder, _, outcome = run
    assert not outcome.failed
    for name, why in outcome.blocked.items():
        assert why.startswith("not available"), name
    for name in ("base", "random", "gru", "rnn"):
        assert f"analyze-{name}" in outcome.done
    for figure in ("5a", "5b", "8a"):
        assert (folder / "figures" / f"{figure}.png").stat().st_size > 10_000
    page = (folder / "reproduction.md").read_text(encoding="utf-8")
    assert "The decay of σ₁ is fast" in page
    assert "106.4" in page or "648.3" in page  # Table 2
    assert "train-seed2" in page.partition("Not run:")[2]
    assert str(folder) not in page  # no path of this machine


def test_the_models_differ_as_they_should(sg, data, small_scale):
    steps = {s.name: s for s in sg.study.steps(sg.study.Options(small_scale, "tiny", data))}

    def option(name, which):
        argv = steps[f"train-{name}"].command
        return argv[argv.index(which) + 1]

    assert [option(n, "--cell") for n in ("base", "gru", "rnn")] == ["LSTM", "GRU", "RNN"]
    assert [option(n, "--hidden") for n in ("small", "base", "large")] == ["4", "5", "6"]
    assert [option(n, "--seed") for n in ("base", "seed2", "seed3", "gru")] == list("1231")
    assert option("corpus-wikitext-2", "--valid") == "text/wikitext-2/valid.txt"
    assert option("pretrained", "--embeddings") == "vectors.txt"
    assert "--embeddings" not in steps["train-base"].command


def test_pretrained_embeddings(run):
    pytest.importorskip("gensim")
    from safetensors.numpy import load_file

    folder, _, outcome = run
    assert "analyze-pretrained" in outcome.done
    config = json.loads((folder / "models" / "pretrained" / "config.json").read_text())
    words = (folder / "models" / "pretrained" / "vocabulary.txt").read_text().split("\n")[:-1]
    assert config["embeddings"]["words"] >= len(words) - 1
    given = load_file(folder / "models" / "pretrained" / "embeddings.safetensors")
    rows = (folder / "vectors.txt").read_text().split("\n")[1:-1]
    first = rows[0].split()
    np.testing.assert_allclose(
        given["vectors"][words.index(first[0])], np.array(first[1:], np.float32), rtol=1e-6
    )


def test_a_second_run_does_nothing(sg, run, data, small_scale):
    folder, _, _ = run
    steps = sg.study.steps(sg.study.Options(small_scale, "tiny", data))

    def forbidden(*arguments):
        raise AssertionError("nothing was to be run")

    engine = sg.engine.Engine(folder, steps, {"samples": ROOT / "samples"}, print, forbidden)
    outcome = engine.run(["5a", "5b", "6b", "8a", "10", "page"])
    assert not outcome.done
    assert not outcome.failed


def test_other_settings_redo_what_rests_on_them(sg, run, data, small_scale):
    folder, _, _ = run
    other = replace(small_scale, embedding=7)
    steps = sg.study.steps(sg.study.Options(other, "tiny", data))
    engine = sg.engine.Engine(folder, steps, {"samples": ROOT / "samples"}, print)
    states = {name: engine.state(name) for name in engine.steps}
    for name in ("train-base", "train-gru", "vectors", "analyze-random", "figure-5a", "page"):
        assert states[name] == "settings changed", name
    for name in ("texts-ewt", "texts-wikitext-2"):
        assert states[name] == "done", name
    fewer = replace(small_scale, large_positions=99)
    steps = sg.study.steps(sg.study.Options(fewer, "tiny", data))
    engine = sg.engine.Engine(folder, steps, {"samples": ROOT / "samples"}, print)
    changed = {name for name in engine.steps if engine.state(name) == "settings changed"}
    assert changed == {"page"}  # of what was run, nothing but the page rests on the large model


@pytest.mark.parametrize("what", ["mnemoscope", "results", "words"])
def test_another_version_redoes_all(sg, run, data, small_scale, monkeypatch, what):
    """Results of an older mnemoscope must not pass for those of this one."""
    import mnemoscope.analyzer
    from mnemoscope.analyzer import result, words

    folder, _, outcome = run

    def states():
        steps = sg.study.steps(sg.study.Options(small_scale, "tiny", data))
        engine = sg.engine.Engine(folder, steps, {"samples": ROOT / "samples"}, print)
        return {engine.state(name) for name in outcome.done}

    assert states() == {"done"}
    module, name = {
        "mnemoscope": (mnemoscope.analyzer, "__version__"),
        "results": (result, "FORMAT_VERSION"),
        "words": (words, "FORMAT_VERSION"),
    }[what]
    monkeypatch.setattr(module, name, "another")
    assert states() == {"settings changed"}


def test_another_corpus_redoes_all(sg, run, data, small_scale, tmp_path):
    folder, _, _ = run
    copy = tmp_path / "data"
    import shutil

    shutil.copytree(data, copy)
    path = copy / "ud-english-ewt" / "en_ewt-ud-train.conllu"
    path.write_text(path.read_text("utf-8").replace("cat", "cow"), "utf-8")
    steps = sg.study.steps(sg.study.Options(small_scale, "tiny", copy))
    engine = sg.engine.Engine(folder, steps, {"samples": ROOT / "samples"}, print)
    assert engine.state("texts-ewt") == engine.state("train-base") == "settings changed"
    assert engine.state("texts-wikitext-2") == "done"


def test_published(sg, run, tmp_path):
    folder, _, _ = run
    sg.claims.publish(folder, tmp_path / "reproduction.md")
    page = (tmp_path / "reproduction.md").read_text(encoding="utf-8")
    shown = [line.split("](")[1][:-1] for line in page.split("\n") if line.startswith("![")]
    assert "images/reproduction-5a.png" in shown
    for image in shown:
        assert (tmp_path / image).exists()


@pytest.mark.parametrize("corpus", ["wikitext-2", "ptb"])
def test_other_main_corpora(sg, data, small_scale, tmp_path, corpus):
    options = sg.study.Options(small_scale, "tiny", data, corpus, data / "ptb")
    steps = sg.study.steps(options)
    engine = sg.engine.Engine(tmp_path, steps, {"samples": ROOT / "samples"}, print, in_process)
    assert engine.run(["texts-ewt", "groups", "texts-ptb"]).done
    assert "nouns" in (tmp_path / "results" / "groups.toml").read_text()  # by the lexicon
    assert f"text/{corpus}/train.txt" in engine.steps["train-base"].command


# The command ---------------------------------------------------------------------------------


@pytest.fixture
def invoke(sg):
    from click.testing import CliRunner

    from samples.state_gradients.__main__ import main

    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


def test_list_and_dry_run_write_nothing(invoke, data, tmp_path):
    folder = tmp_path / "run"
    for option in ("--list", "--dry-run"):
        said = invoke("--scale", "tiny", "--data", data, "-o", folder, option)
        assert said.exit_code == 0, said.output
        assert "train-base" in said.output
        assert "left: about" in said.output
        assert not folder.exists()
    assert "word_lm.py train text/ewt/train.txt" in said.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "12z"], "There is no step or figure '12z'"),
        (["--corpus", "ptb"], "give its folder with --ptb"),
        (["--scale", "huge"], "Invalid value"),
        (["--data", "/nowhere"], "does not exist"),
    ],
)
def test_bad_calls(invoke, data, tmp_path, arguments, message):
    said = invoke("--data", data, "-o", tmp_path / "run", "--scale", "tiny", *arguments)
    assert said.exit_code == 2
    assert message in said.output
    assert "Traceback" not in said.output
    assert not (tmp_path / "run").exists()


def test_no_data(invoke, tmp_path):
    said = invoke("--data", tmp_path, "-o", tmp_path / "run")
    assert said.exit_code == 2
    assert "en_ewt-ud-train.conllu" in said.output


def test_the_command_runs(data, tmp_path):
    """From the root of the repository, in processes of its own; then a step that fails."""
    argv = [sys.executable, "-m", "samples.state_gradients", "--scale", "tiny", "--data", str(data)]
    argv += ["-o", str(tmp_path / "run"), "--only", "groups"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 steps done" in done.stdout
    again = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "2 were done before" in again.stdout
