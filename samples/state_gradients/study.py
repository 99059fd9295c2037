"""The experiments of the paper as steps: what is trained, exported, analysed and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import claims, commands, corpora, figures
from .engine import Step
from .scales import Amount, Scale

CELL, HIDDEN = "lstm0.c", "lstm0.h"
_CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}  # matrices of the recurrent layer

CLASSES: dict[str, tuple[str, ...]] = {
    "nouns": ("NN", "NNS", "NNP", "NNPS"),
    "verbs": ("VB", "VBD", "VBG", "VBN", "VBP", "VBZ"),
    "adjectives": ("JJ", "JJR", "JJS"),
    "adverbs": ("RB", "RBR", "RBS"),
    "pronouns": ("PRP", "PRP$", "WP", "WP$"),
    "determiners": ("DT", "PDT", "WDT"),
    "conjunctions-prepositions": ("CC", "IN", "TO"),
}
"""Figure 8a, by Penn tags."""

# Curve of `measures.Results` → step, state, normalization.
CURVES: dict[str, tuple[str, str, str]] = {
    "base.c": ("analyze-base", CELL, "whitened"),
    "base.h": ("analyze-base", HIDDEN, "whitened"),
    "base-raw.c": ("analyze-base", CELL, "none"),
    "random.c": ("analyze-random", CELL, "whitened"),
    "seed2.c": ("analyze-seed2", CELL, "whitened"),
    "seed3.c": ("analyze-seed3", CELL, "whitened"),
    "gru.h": ("analyze-gru", "gru0.h", "whitened"),
    "rnn.h": ("analyze-rnn", "rnn0.h", "whitened"),
    "small.c": ("analyze-small", CELL, "whitened"),
    "large.c": ("analyze-large", CELL, "whitened"),
    "pretrained.c": ("analyze-pretrained", CELL, "whitened"),
}

FIGURES: dict[str, tuple[str, dict[str, str]]] = {
    # figure: (title, label → curve)
    "4a": ("Normalised or not", {"whitened": "base.c", "not normalised": "base-raw.c"}),
    "4b": ("Three seeds", {"seed 1": "base.c", "seed 2": "seed2.c", "seed 3": "seed3.c"}),
    "5a": ("Trained or random weights", {"trained": "base.c", "random weights": "random.c"}),
    "5b": (
        "States and cells",
        {"LSTM cell": "base.c", "LSTM hidden": "base.h", "GRU": "gru.h", "vanilla RNN": "rnn.h"},
    ),
    "6a": ("Hidden size", {"small": "small.c", "usual": "base.c", "large": "large.c"}),
    "6b": (
        "Embeddings",
        {"trained jointly": "base.c", "pre-trained": "pretrained.c"},
    ),
}


@dataclass(frozen=True)
class Options:
    """What a user chooses.

    Attributes:
        scale: Sizes.
        scale_name: What they are called.
        data: Folder of the corpora.
        corpus: The main one; None means the scale's.
        ptb: Folder of the Penn Treebank text.
        vectors: Pre-trained word vectors; None trains them.
        device: ``auto``, ``cpu`` or ``cuda``, for training.
    """

    scale: Scale
    scale_name: str
    data: Path
    corpus: str | None = None
    ptb: Path | None = None
    vectors: Path | None = None
    device: str = "auto"

    @property
    def main(self) -> str:
        """The main corpus."""
        return self.corpus or self.scale.corpus


@dataclass(frozen=True)
class _Model:
    """A model to train: what differs from the base model, and the figures that show it."""

    title: str
    figures: tuple[str, ...]
    cell: str = "LSTM"
    size: int = 1  # of the scale's three
    seed: int = 1
    pretrained: bool = False
    rate: float = 1.0  # of learning


_MODELS = {
    "base": _Model("the base model", ("4a", "4b", "5a", "5b", "6a", "6b", "7a", "table2")),
    "gru": _Model("a GRU", ("5b", "table2"), cell="GRU"),
    "rnn": _Model("a vanilla RNN", ("5b", "table2"), cell="RNN", rate=0.2),
    "seed2": _Model("the base model with seed 2", ("4b", "table2"), seed=2),
    "seed3": _Model("the base model with seed 3", ("4b", "table2"), seed=3),
    "pretrained": _Model("on pre-trained embeddings", ("6b", "table2"), pretrained=True),
    "small": _Model("the small model", ("6a", "table2"), size=0),
    "large": _Model("the large model", ("6a", "table2"), size=2),
}


def steps(options: Options) -> list[Step]:
    """All steps of the study, the most important first as far as what they need allows.

    Raises:
        corpora.NoCorpus: The main corpus is missing.
    """
    main = options.main
    sources: dict[str, corpora.Source] = {main: corpora.find(main, options.data, options.ptb)}
    lacking: dict[str, str] = {}
    for name in ("ewt", "wikitext-2", "ptb"):
        if name != main:
            try:
                sources[name] = corpora.find(name, options.data, options.ptb)
            except corpora.NoCorpus as error:
                lacking[name] = str(error)
    found: list[Step] = []
    for name in ("ewt", "wikitext-2", "ptb"):
        found.append(_texts(name, sources.get(name), lacking.get(name), options))
    found += _model(options, "base", main, sources[main])
    found.append(_random())
    found.append(_analysis(options, "random", "random weights", main, ("5a",)))
    classes, table = _classes(options, main, sources)
    found += classes
    found.append(_words(options, main))
    found += _properties(options, main, sources)
    for name in ("gru", "rnn", "seed2", "seed3"):
        found += _model(options, name, main, sources[main])
    found.append(_vectors(options, main, sources))
    found += _model(options, "pretrained", main, sources[main])
    for name in ("ewt", "wikitext-2", "ptb"):
        if name != main:
            found += _other(options, name, sources.get(name), lacking.get(name))
    for name in ("small", "large"):
        found += _model(options, name, main, sources[main])
    found += table  # last: its classifiers take the longest for the least
    found += _figures(options, main)
    everything = tuple(s.name for s in found)
    found.append(
        Step(
            "page",
            "write reproduction.md",
            ("reproduction.md",),
            optional=everything,
            function=claims.write_page,
            settings={"version": 1, "scale": options.scale_name, "corpus": main},
            seconds=20,
        )
    )
    # Every step runs mnemoscope, a sample's script, or follows from one that does.
    made_by = _versions()
    return [replace(step, settings={**step.settings, "made_by": made_by}) for step in found]


def _versions() -> dict[str, Any]:
    """What results depend on besides settings: another version may find something else."""
    from mnemoscope.analyzer import __version__, result, words

    return {
        "mnemoscope": __version__,
        result.FORMAT: result.FORMAT_VERSION,
        words.FORMAT: words.FORMAT_VERSION,
    }


# Texts and models ----------------------------------------------------------------------------


def _texts(name: str, source: corpora.Source | None, lacking: str | None, options: Options) -> Step:
    amount = options.scale.amounts[name]
    made = [f"text/{name}/{part}.txt" for part in (*corpora.PARTS, "whole")]
    if name == "ewt":
        made += [f"text/{name}/{x}" for x in ("valid.conllu", "lexicon.tsv")]

    def function(folder: Path) -> None:
        assert source is not None
        corpora.prepare(source, amount, folder / "text" / name)

    return Step(
        f"texts-{name}",
        f"cut the texts of {name} to size",
        tuple(made),
        function=function,
        settings={"amount": vars(amount), "files": source.digest() if source else None},
        seconds=5,
        unavailable=lacking,
    )


def _train(
    options: Options, name: str, model: _Model, corpus: str, source: corpora.Source | None
) -> Step:
    scale = options.scale
    hidden = scale.hidden[model.size]
    text, folder = f"text/{corpus}", f"models/{name}"
    argv = ["@samples/word_lm.py", "train", f"{text}/train.txt"]
    argv += ["--valid", f"{text}/valid.txt", "--test", f"{text}/test.txt", "-o", folder]
    argv += ["--cell", model.cell, "--embedding", str(scale.embedding), "--hidden", str(hidden)]
    argv += ["--batch", str(scale.batch), "--steps", str(scale.steps)]
    argv += ["--epochs", str(scale.epochs), "--flat-epochs", str(scale.flat_epochs)]
    argv += ["--learning-rate", str(model.rate)] if model.rate != 1 else []
    argv += ["--decay", str(scale.decay), "--seed", str(model.seed), "--device", options.device]
    if scale.vocabulary:
        argv += ["--vocabulary-size", str(scale.vocabulary)]
    if model.pretrained:
        argv += ["--embeddings", "vectors.txt"]
    seconds = 0.0
    if source is not None:
        relative = _cost(scale, hidden, model.cell) / _cost(scale, scale.hidden[1], "LSTM")
        tokens = scale.epochs * (
            _tokens(source, scale.amounts[corpus], "train")
            + 0.4 * _tokens(source, scale.amounts[corpus], "valid")
        )
        seconds = 10 + relative * tokens / scale.train_rate
    return Step(
        f"train-{name}",
        f"train {model.title} on {corpus}",
        (f"{folder}/model.onnx", f"{folder}/config.json", f"{folder}/vocabulary.txt"),
        (f"texts-{corpus}", *(("vectors",) if model.pretrained else ())),
        command=tuple(argv),
        resume=("--resume",),
        resumable=f"{folder}/config.json",
        scratch=folder,
        seconds=seconds,
        figures=model.figures,
    )


def _cost(scale: Scale, hidden: int, cell: str) -> float:
    """Multiplications of one token: the output layer and the recurrent layer."""
    words = scale.vocabulary or 33_000
    return words * hidden + _CELLS[cell] * hidden * (scale.embedding + hidden)


def _tokens(source: corpora.Source, amount: Amount, part: str) -> float:
    """About how many tokens are used, from the size of the file."""
    bytes_each = 66.0 if source.tagged else 5.2
    there = source.paths[part].stat().st_size / bytes_each
    most = getattr(amount, part)
    return there if most is None else min(there, most)


def _model(options: Options, name: str, corpus: str, source: corpora.Source) -> list[Step]:
    model = _MODELS[name]
    figures = tuple(f for f in model.figures if f != "table2")
    return [
        _train(options, name, model, corpus, source),
        _analysis(
            options, name, model.title, corpus, figures, model.cell, model.size,
            needs=f"train-{name}",
        ),
    ]  # fmt: skip


def _other(
    options: Options, corpus: str, source: corpora.Source | None, lacking: str | None
) -> list[Step]:
    name = f"corpus-{corpus}"
    model = _Model("the base model", ("7a", "table2"))
    train = _train(options, name, model, corpus, source)
    analysis = _analysis(options, name, "the same model", corpus, ("7a",), needs=f"train-{name}")
    return [_unless(train, lacking), _unless(analysis, lacking)]


def _random() -> Step:
    return Step(
        "export-random",
        "export the base model's random weights",
        ("models/random.onnx",),
        ("train-base",),
        command=(
            "@samples/word_lm.py", "export", "models/base", "-o", "models/random.onnx",
            "--untrained",
        ),
        seconds=10,
        figures=("5a",),
    )  # fmt: skip


def _vectors(options: Options, main: str, sources: Mapping[str, corpora.Source]) -> Step:
    scale = options.scale
    if options.vectors is not None:
        given = options.vectors.resolve()

        def copy(folder: Path) -> None:
            with given.open("rb") as read, (folder / "vectors.txt").open("wb") as write:
                while piece := read.read(2**20):
                    write.write(piece)

        return Step(
            "vectors",
            f"take the word vectors of {given.name}",
            ("vectors.txt",),
            function=copy,
            settings={"sha256": corpora.sha256(given)},
            figures=("6b",),
        )
    # The main corpus first, and all other training text: more than the model itself reads.
    names = [main, *(name for name in sources if name != main)]
    argv = ["@samples/word_vectors.py", "train"]
    argv += [f"text/{n}/whole.txt" for n in names]
    argv += ["-o", "vectors.txt", "--vocabulary", "models/base/vocabulary.txt"]
    argv += ["--size", str(scale.embedding), "--epochs", str(scale.vector_epochs)]
    if scale.vector_tokens:
        argv += ["--tokens", str(scale.vector_tokens)]
    return Step(
        "vectors",
        f"train CBOW vectors on {', '.join(names)}",
        ("vectors.txt",),
        ("train-base", *(f"texts-{n}" for n in names)),
        command=tuple(argv),
        seconds=60,
        figures=("6b",),
        unavailable=_no_gensim(),
    )


def _no_gensim() -> str | None:
    from importlib.util import find_spec

    if find_spec("gensim") is None:
        return "training vectors needs gensim (pip install gensim==4.4.0), or give --vectors"
    return None


# Analyses ------------------------------------------------------------------------------------


def _analysis(
    options: Options,
    name: str,
    title: str,
    corpus: str,
    figures: tuple[str, ...],
    cell: str = "LSTM",
    size: int = 1,
    needs: str | None = None,
) -> Step:
    scale = options.scale
    positions = scale.large_positions if size == 2 else scale.positions
    hidden = scale.hidden[size]
    model = f"models/{name}/model.onnx" if needs else f"models/{name}.onnx"
    return Step(
        f"analyze-{name}",
        f"analyse {title}",
        (f"results/{name}.nc",),
        (needs or f"export-{name}", f"texts-{corpus}"),
        command=commands.analyze(
            model,
            f"text/{corpus}/valid.txt",
            f"results/{name}.nc",
            delays=scale.delays,
            positions=positions,
            states=(CELL,) if name == "random" else (),
            keep_blocks=name in ("base", "random"),
        ),
        seconds=8 + (positions or 30_000) * _position_seconds(scale, hidden, cell),
        figures=figures,
    )


def _position_seconds(scale: Scale, hidden: int, cell: str = "LSTM") -> float:
    return scale.position_seconds * _CELLS[cell] / 4 * max(0.1, hidden / scale.hidden[1]) ** 2


def _tags(options: Options, main: str, sources: Mapping[str, corpora.Source]) -> str | None:
    """Why the words of the main corpus have no tags; None if they have, or a lexicon has them."""
    if sources[main].tagged or "ewt" in sources:
        return None
    return f"{main} has no tags, and there is no EWT treebank to make a lexicon from"


def _classes(
    options: Options, main: str, sources: Mapping[str, corpora.Source]
) -> tuple[list[Step], list[Step]]:
    """The steps of Figure 8a, and those of Table 3."""
    scale = options.scale
    why = _tags(options, main, sources) or commands.missing("classes")
    tagged = sources[main].tagged
    unions = {**CLASSES, **{tag: (tag,) for tag in commands.TAGS}}

    def function(folder: Path) -> None:
        lexicon = None if tagged else folder / "text" / "ewt" / "lexicon.tsv"
        _write_groups(folder, folder / "text" / main, lexicon, unions)

    needs = (f"texts-{main}", *(() if tagged else ("texts-ewt",)))
    groups = Step(
        "groups",
        "name the classes of words",
        ("results/groups.toml",),
        needs,
        function=function,
        settings={"unions": unions},
        figures=("8a", "10", "11"),
    )
    positions = scale.class_positions
    there = _tokens(sources[main], scale.amounts[main], "valid")
    classes = Step(
        "classes",
        "analyse classes of words",
        ("results/classes.nc",),
        ("train-base", *needs, "groups"),
        command=commands.analyze(
            "models/base/model.onnx",
            f"text/{main}/valid.{'conllu' if tagged else 'txt'}",
            "results/classes.nc",
            delays=scale.delays,
            positions=positions,
            states=(CELL,),
            group_by="xpos" if tagged else "text/ewt/lexicon.tsv",
            groups="results/groups.toml",
            keep_blocks=True,
        ),
        seconds=20 + 1.5 * (positions or there) * _position_seconds(scale, scale.hidden[1]),
        figures=("8a", "10", "11"),
        unavailable=why,
    )
    tags = Step(
        "tags",
        "count the tags of every type",
        ("results/tags.nc",),
        ("train-base", *needs),
        command=commands.analyze(
            "models/base/model.onnx",
            f"text/{main}/valid.{'conllu' if tagged else 'txt'}",
            "results/tags.nc",
            delays=0,
            states=(CELL,),
            group_by="xpos" if tagged else "text/ewt/lexicon.tsv",
        ),
        seconds=30,
        figures=("table3",),
        unavailable=why,
    )
    table = Step(
        "table3",
        "tell classes apart by their embeddings",
        ("results/table3.json",),
        ("tags",),
        command=commands.separability("results/tags.nc"),
        stdout="results/table3.json",
        seconds=240,
        figures=("table3",),
        unavailable=why or commands.missing("table3"),
    )
    return [groups, classes], [tags, table]


def _write_groups(
    folder: Path, text: Path, lexicon: Path | None, unions: Mapping[str, Sequence[str]]
) -> None:
    """The classes that the validation text has any word of."""
    known = corpora.tags_of(text, lexicon)
    there = {name: [m for m in members if m in known] for name, members in unions.items()}
    lines = [f"{json.dumps(n)} = {json.dumps(m)}\n" for n, m in there.items() if m]
    (folder / "results" / "groups.toml").write_text("".join(lines), encoding="utf-8")


def _words(options: Options, main: str) -> Step:
    scale = options.scale
    return Step(
        "words",
        "analyse single words",
        ("results/words.nc",),
        ("train-base", f"texts-{main}"),
        command=commands.words(
            "models/base/model.onnx",
            f"text/{main}/valid.txt",
            "results/words.nc",
            f"text/{main}/train.txt",
            CELL,
            delays=scale.delays,
            count=scale.word_count,
        ),
        seconds=30 + 12_000 * _position_seconds(scale, scale.hidden[1]),
        figures=("8b", "9a", "9b"),
        unavailable=commands.missing("words"),
    )


def _properties(options: Options, main: str, sources: Mapping[str, corpora.Source]) -> list[Step]:
    why = _tags(options, main, sources) or commands.missing("properties")
    found = []
    for name, (given, group) in commands.PROPERTIES.items():
        own = why
        if "--suffix" in given and not sources[main].tagged:
            own = f"the genitive 's is a word of its own in {main}, which has no tags to join it by"
        found.append(
            Step(
                f"property-{name}",
                f"property {name}",
                (f"results/property-{name}.json",),
                ("classes",),
                command=commands.property_("results/classes.nc", name, CELL),
                stdout=f"results/property-{name}.json",
                seconds=30,
                figures=("10" if group == "nouns" else "11", "table3"),
                unavailable=own,
            )
        )
    return found


# Figures -------------------------------------------------------------------------------------


def _figures(options: Options, main: str) -> list[Step]:
    hidden = options.scale.hidden
    found = []
    for figure, (title, shown) in FIGURES.items():
        labels = dict(zip(("small", "usual", "large"), hidden, strict=True))
        named = {
            f"{labels[label]} units" if label in labels else label: CURVES[curve]
            for label, curve in shown.items()
        }
        found.append(_curves(figure, title, named))
    corpora_ = {main: CURVES["base.c"]}
    for name in ("ewt", "wikitext-2", "ptb"):
        if name != main:
            corpora_[name] = (f"analyze-corpus-{name}", CELL, "whitened")
    found.append(_curves("7a", "Corpora", corpora_))
    for figure, title, draw, needs in (
        ("8a", "classes of words", figures.draw_classes, ("classes",)),
        ("8b", "frequency against σ₁ and decay", figures.draw_words, ("words",)),
        ("10", "noun properties", figures.noun_properties, ()),
        ("11", "verb properties", figures.verb_properties, ()),
    ):
        group = {"10": "nouns", "11": "verbs"}.get(figure)
        optional = tuple(f"property-{n}" for n, (_, g) in commands.PROPERTIES.items() if g == group)
        found.append(
            Step(
                f"figure-{figure}",
                f"draw {title}",
                (f"figures/{figure}.png",),
                needs,
                function=_drawn(draw, figure),
                optional=optional,
                settings={"version": 1},
                seconds=5,
                figures=(figure, "9b") if figure == "8b" else (figure,),
                unavailable=commands.missing("properties") if group else None,
            )
        )
    found.append(_word_curves())
    return found


def _word_curves() -> Step:
    """Figure 9a, for a function word that every English text has, and the rarest word with a fit.

    The paper's "congressional" is in few other texts.
    """

    def function(folder: Path) -> None:
        figures.draw_word_curves(folder, folder / "figures" / "9a.png")

    return Step(
        "figure-9a",
        "draw the fits of two words",
        ("figures/9a.png",),
        ("words",),
        function=function,
        settings={"version": 1},
        seconds=5,
        figures=("9a",),
    )


def _drawn(draw: Callable[[Path, Path], None], figure: str) -> Callable[[Path], None]:
    return lambda folder: draw(folder, folder / "figures" / f"{figure}.png")


def _curves(figure: str, title: str, shown: Mapping[str, tuple[str, str, str]]) -> Step:
    needs = tuple(dict.fromkeys(step for step, _, _ in shown.values()))

    def function(folder: Path) -> None:
        figures.draw_curves(folder, folder / "figures" / f"{figure}.png", title, shown)

    return Step(
        f"figure-{figure}",
        f"draw {title.lower()}",
        (f"figures/{figure}.png",),
        needs[:1],
        optional=needs[1:],
        function=function,
        settings={"version": 1, "shown": shown},
        seconds=5,
        figures=(figure,),
    )


def _unless(step: Step, why: str | None) -> Step:
    return step if why is None else replace(step, unavailable=why)


def names(steps_: Sequence[Step]) -> list[str]:
    """Steps and figures that ``--only`` takes."""
    figures_ = sorted({f for s in steps_ for f in s.figures})
    return [*figures_, *(s.name for s in steps_)]
