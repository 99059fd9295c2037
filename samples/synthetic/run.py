"""The synthetic proof of Verwimp et al. (2020, section 4.2), from the corpus to the figures.

    python samples/synthetic/run.py --scale small      # two minutes
    python samples/synthetic/run.py --scale full       # the paper's sizes

Everything goes into one folder, step by step; a step whose files are there is skipped, and
training goes on after its last complete epoch. docs/synthetic.md says what it shows.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import study
from mnemoscope.analyzer import analyze, open_model, open_result, read_corpus, save_result
from mnemoscope.analyzer._files import replacing
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.synthetic_corpus import END_OF_LINE, Language, write_corpus
from threadpoolctl import threadpool_limits


@dataclass(frozen=True)
class Scale:
    """Sizes of an experiment.

    Attributes:
        language: What the corpus is drawn from.
        train: Tokens to train on.
        valid: Tokens to analyse; the last `held_out` of them test the discriminants.
        test: Tokens for the test perplexity.
        held_out: See `valid`.
        hidden: Units.
        batch: Streams that are read side by side in training.
        steps: Through which training takes gradients.
        epochs: Times that the training text is read.
        delays: Largest delay.
    """

    language: Language
    train: int
    valid: int
    test: int
    held_out: int
    hidden: int
    batch: int
    steps: int
    epochs: int
    delays: int


SCALES = {
    # For the tests: another language, with cycles of 4 tokens, that is learnt in seconds.
    "tiny": Scale(Language(4, 3, 2, 4), 15_000, 3_000, 1_000, 1_000, 16, 16, 16, 6, 10),
    "small": Scale(Language(), 1_000_000, 40_000, 20_000, 10_000, 50, 16, 96, 10, 60),
    "full": Scale(Language(), 16_000_000, 160_000, 160_000, 10_000, 50, 16, 96, 1, 60),
}


class Run:
    """One experiment in one folder.

    Args:
        folder: Is made if it is not there.
        scale: Sizes.
        seed: Of the corpus and of the weights.
        say: Called with lines for the reader.
    """

    def __init__(
        self, folder: Path, scale: Scale, *, seed: int = 0, say: Callable[[str], None] = click.echo
    ) -> None:
        self.folder, self.scale, self.seed, self.say = folder, scale, seed, say
        settings = json.loads(json.dumps({**asdict(scale), "seed": seed}))
        path = folder / "settings.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                self._write_json(path, settings)
            same = json.loads(path.read_text(encoding="utf-8")) == settings
        except OSError as error:
            raise click.UsageError(
                f"{folder} cannot be written: {error.strerror}. Choose another --output."
            ) from error
        except ValueError:
            same = False
        if not same:
            raise click.UsageError(
                f"{folder} holds a run with other settings (settings.json). "
                "Choose another --output, or remove it."
            )

    def everything(self) -> dict[str, Any]:
        """Do what is not done yet; gives the content of ``report.json``."""
        for step, files in (
            (self.corpus, ["synthetic.json"]),
            (self.train, ["m.onnx", "training.json"]),
            (self.states, ["states.npz"]),
            (self.gradients, ["gradients.nc"]),
            (self.report, ["report.json", "report.md", "figure2.png", "figure3.png"]),
        ):
            if all((self.folder / name).exists() for name in files):
                self.say(f"{step.__name__}: done before")
                continue
            began = time.monotonic()
            step()
            self.say(f"{step.__name__}: {time.monotonic() - began:.0f} s")
        return self._read_json("report.json")

    # The steps -------------------------------------------------------------------------------

    def corpus(self) -> None:
        """The three parts and their labels."""
        sizes = {part: getattr(self.scale, part) for part in ("train", "valid", "test")}
        write_corpus(self.folder, self.scale.language, sizes, seed=self.seed)

    def train(self) -> None:
        """The weights, and the memory model."""
        import model
        import torch
        from mnemoscope.exporters import pytorch

        torch.set_num_threads(1)  # one step is too small to be shared
        scale, log, began = self.scale, [], time.process_time()

        def note(epoch: int, loss: float) -> None:
            log.append({"epoch": epoch, "perplexity": math.exp(loss)})
            self.say(f"  epoch {epoch} of {scale.epochs}: perplexity {math.exp(loss):.4f}")

        trained = model.train(
            self.ids("train"),
            self.folder / "checkpoint.pt",
            tokens=len(self.vocabulary),
            hidden=scale.hidden,
            batch=scale.batch,
            steps=scale.steps,
            epochs=scale.epochs,
            seed=self.seed,
            report=note,
        )
        pytorch.export(
            trained, self.folder / "m.onnx", vocabulary=self.vocabulary, level="word",
            end_of_line=END_OF_LINE,
        )  # fmt: skip
        seconds = time.process_time() - began
        self._write_json(
            self.folder / "training.json", {"epochs": log, "processor_seconds": round(seconds, 1)}
        )

    def states(self) -> None:
        """States and losses of the memory model, by ONNX Runtime, on the validation text."""
        path = self.folder / "m.onnx"
        valid = study.record(path, self.ids("valid"))
        test = study.record(path, self.ids("test"), states=False)
        with replacing(self.folder / "states.npz") as temporary:
            np.savez(temporary, **valid, test_loss=test["loss"])

    def gradients(self) -> None:
        """Mean gradients over all inputs and over the new tokens."""
        model = open_model(self.folder / "m.onnx")
        corpus = read_corpus(self.folder / "valid.txt", model.vocabulary)
        new = study.cycle_places(corpus.ids, len(self.vocabulary) - 1, self.period) == 0
        groups = Groups.from_masks({"token-1": new}).with_all()
        tree = analyze(
            model, corpus, delays=self.scale.delays, states=["lstm0.c"], groups=groups,
            seed=self.seed, report=lambda line: self.say(f"  {line}"),
        )  # fmt: skip
        save_result(tree, self.folder / "gradients.nc")

    def report(self) -> None:
        """The table, the figures and the perplexities."""
        with np.load(self.folder / "states.npz") as held:
            recorded = dict(held)
        # Hundreds of small decompositions: threads inside each cost more than they give.
        with threadpool_limits(limits=1):
            found = study.study(
                recorded,
                open_result(self.folder / "gradients.nc"),
                ids=self.ids("valid"),
                end=len(self.vocabulary) - 1,
                period=self.period,
                held_out=self.scale.held_out,
                least=self._read_json("synthetic.json")["perplexity"],
            )
        for number, draw in ((2, study.figure2), (3, study.figure3)):
            with replacing(self.folder / f"figure{number}.png") as temporary:
                draw(found).savefig(temporary, dpi=90)
        with replacing(self.folder / "report.md") as temporary:
            temporary.write_text(study.markdown(found), encoding="utf-8")
        self._write_json(self.folder / "report.json", study.plain(found))

    # What they share -------------------------------------------------------------------------

    @property
    def period(self) -> int:
        return self.scale.language.period

    @property
    def vocabulary(self) -> list[str]:
        return [*self.scale.language.tokens, END_OF_LINE]

    def ids(self, part: str) -> np.ndarray:
        """``[position]`` int8 ids of a part, ends of lines included."""
        number = {token: i for i, token in enumerate(self.vocabulary)}
        with (self.folder / f"{part}.txt").open(encoding="utf-8") as lines:
            return np.concatenate(
                [
                    np.array([number[t] for t in (*line.split(), END_OF_LINE)], np.int8)
                    for line in lines
                ]
            )

    def _read_json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    @staticmethod
    def _write_json(path: Path, value: Any) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="small", show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for all files.  [default: synthetic-SCALE]",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the scale's own number.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def main(scale: str, output: Path | None, epochs: int | None, seed: int) -> None:
    """Train the paper's LSTM on its made-up language, and look at what it remembers."""
    sizes = SCALES[scale] if epochs is None else replace(SCALES[scale], epochs=epochs)
    run = Run(output or Path(f"synthetic-{scale}"), sizes, seed=seed)
    run.everything()
    click.echo("\n" + (run.folder / "report.md").read_text(encoding="utf-8"))
    click.echo(f"The figures and report.json are in {run.folder}.")


if __name__ == "__main__":
    main()
