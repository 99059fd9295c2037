"""Make the two models in samples/models: a small LSTM trained on pydoc's prose, and its twin.

    python samples/make_models.py

The twin holds the random weights that training started from. All settings are the paper's, but
for the smaller model and for mini-batches that still give a short text many updates.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
import torch
import word_lm
from mnemoscope.analyzer.pydoc_corpus import lines

MODELS = Path(__file__).resolve().parent / "models"
SETTINGS = "--vocabulary-size 1200 --hidden 128 --batch 4 --steps 100 --epochs 20 --seed 1"


def split(sentences: list[str]) -> dict[str, list[str]]:
    """Part of the text to its sentences, in stretches of 20.

    Every fifth of ten stretches goes to ``valid``, every tenth to ``test``: whole stretches, for
    neighbours share their subject; from all over, for the topics differ.
    """
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for i, sentence in enumerate(sentences):
        parts[{4: "valid", 9: "test"}.get(i // 20 % 10, "train")].append(sentence)
    return parts


@click.command()
@click.option("-o", "--output", type=word_lm.FOLDER, default=MODELS, help="Where to write.")
@click.option("--settings", default=SETTINGS, show_default=True, help="Of word_lm.py train.")
def main(output: Path, settings: str) -> None:
    """Write pydoc-lstm.onnx, pydoc-lstm-untrained.onnx and pydoc-lstm.json, the training's log."""
    torch.set_num_threads(1)  # a sum's order, and so its rounding, depends on their number
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        texts = {}
        for name, sentences in split(list(lines())).items():
            texts[name] = Path(folder) / f"{name}.txt"
            word_lm.write_text(texts[name], "".join(f"{s}\n" for s in sentences))
        start = time.perf_counter()
        arguments = ["train", str(texts["train"]), "--no-export", "-o", str(run)]
        arguments += ["--valid", str(texts["valid"]), "--test", str(texts["test"])]
        word_lm.main([*arguments, *settings.split()], standalone_mode=False)
        config, vocabulary = word_lm.read_run(run)
        config["seconds"] = round(time.perf_counter() - start, 1)
        config["untrained_perplexity"] = {
            name: word_lm.evaluate(
                word_lm.initial_model(config),
                word_lm.encode(word_lm.read_lines(texts[name]), vocabulary),
            )
            for name in ("valid", "test")
        }
        word_lm.export_run(run, output / "pydoc-lstm.onnx")
        word_lm.export_run(run, output / "pydoc-lstm-untrained.onnx", untrained=True)
        word_lm.write_text(output / "pydoc-lstm.json", json.dumps(config, indent=1) + "\n")
    click.echo(f"wrote the models and pydoc-lstm.json into {output}")


if __name__ == "__main__":
    main()
