"""Every case has a number: what it mutates, how, and which commands read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import click
import numpy as np
from mnemoscope.analyzer.roles import ROLES_KEY

from .bases import BASES
from .harness import DELAYS
from .models_mutated import MUTATORS
from .texts_mutated import BUDGETS, CORPORA, ROLES, good_budget, good_roles

MODELS, TEXTS = 2100, 540
TEXT = "w1 w2 w3 zebra\nw4 w5\nw7 w8 w9 w1\n" * 3
IDS = "1 2 3 4 5 6 7 8 9 10 11 0 1 2 3 4\n" * 2

# Whose cases run until they are ended; three of four of their turns go to others.
SLOW = ("gigantic-tensor", "doubling", "endless-loop", "long-sequence")

Write = Callable[[Path], list[list[str]]]


@cache
def _blob(base: str) -> bytes:
    return BASES[base]().SerializeToString()


@cache
def command_exists(*names: str) -> bool:
    """Whether the program has this command; commands join the cases as they are written."""
    from mnemoscope.cli.main import main

    group: click.Command | None = main
    for name in names:
        if not isinstance(group, click.Group):
            return False
        group = group.get_command(click.Context(group), name)
    return group is not None


def case(number: int) -> tuple[str, Write]:
    """The name of the mutator of case `number`, and what writes its files.

    The writer returns the commands to run. Cases 0 to `MODELS` - 1 are models, the rest texts.
    """
    if number < MODELS:
        return _model_case(number)
    kinds = [(k, n) for k, table in (("corpus", CORPORA), ("roles", ROLES), ("budget", BUDGETS))
             for n in table]  # fmt: skip
    kind, name = kinds[(number - MODELS) % len(kinds)]
    rng = np.random.default_rng([2, number])
    return f"{kind}: {name}", {"corpus": _corpus, "roles": _roles, "budget": _budget}[kind](
        rng, name
    )


def _analyses(corpus: str = "c.txt") -> list[list[str]]:
    return [
        ["analyze", "m.onnx", corpus, "-o", f"{method}.nc", "--delays", str(DELAYS), "--method",
         method, "--precision", "float64", "--provider", "cpu", "--threads", "1", "--blocks", "2",
         "-q"]
        for method in ("jvp", "fd")
    ]  # fmt: skip


def _reads_model(corpus: str) -> list[list[str]]:
    calls = [["inspect", "m.onnx", "--json"], *_analyses(corpus)]
    if command_exists("export", "onnx"):
        calls.append(["export", "onnx", "m.onnx", "-o", "exported.onnx"])
    return calls


def _model_case(number: int) -> tuple[str, Write]:
    mutators = list(MUTATORS)
    name = mutators[number % len(mutators)]
    rng = np.random.default_rng([1, number])
    if name in SLOW and number // len(mutators) % 4:
        name = str(rng.choice([m for m in mutators if m not in SLOW]))
    # Each mutator meets all bases in turn.
    base = list(BASES)[(number // len(mutators) + number) % len(BASES)]

    def write(folder: Path) -> list[list[str]]:
        files = MUTATORS[name](rng, _blob(base))
        if isinstance(files, bytes):
            files = {"m.onnx": files}
        for path, content in files.items():
            target = folder / path
            if isinstance(content, Path):
                target.symlink_to(content)
            else:
                target.write_bytes(content)
        corpus = "ids.txt" if base == "ids" else "c.txt"
        (folder / corpus).write_text(IDS if base == "ids" else TEXT)
        return _reads_model(corpus)

    return f"model: {name}", write


def _corpus(rng: np.random.Generator, name: str) -> Write:
    def write(folder: Path) -> list[list[str]]:
        base = "ids" if rng.random() < 0.4 else "flat"
        (folder / "m.onnx").write_bytes(_blob(base))
        text = IDS if base == "ids" else TEXT
        (folder / "c.txt").write_bytes(CORPORA[name](rng, text.encode()))
        return _analyses()[:1]

    return write


def _roles(rng: np.random.Generator, name: str) -> Write:
    def write(folder: Path) -> list[list[str]]:
        import onnx

        base = ("lstm", "flat", "counter", "scan")[rng.integers(4)]
        model = onnx.load_from_string(_blob(base))
        data = ROLES[name](rng, good_roles(model))
        (folder / "roles.json").write_bytes(data)
        (folder / "shipped.onnx").write_bytes(_without_roles(base))
        for entry in model.metadata_props:
            if entry.key == ROLES_KEY:
                entry.value = data.decode("utf-8", "ignore")
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        (folder / "c.txt").write_text(TEXT)
        calls = [["inspect", "m.onnx", "--json"], *_analyses()]
        if command_exists("export", "onnx"):
            calls.append(["export", "onnx", "shipped.onnx", "--roles", "roles.json",
                          "-o", "exported.onnx"])  # fmt: skip
        return calls

    return write


def _without_roles(base: str) -> bytes:
    import onnx

    model = onnx.load_from_string(_blob(base))
    del model.metadata_props[:]
    return model.SerializeToString()


def _budget(rng: np.random.Generator, name: str) -> Write:
    def write(folder: Path) -> list[list[str]]:
        if not command_exists("check"):
            return []
        (folder / "m.onnx").write_bytes(_blob("flat"))
        (folder / "c.txt").write_text(TEXT * 10)
        (folder / "b.toml").write_bytes(BUDGETS[name](rng, good_budget()))
        return [["check", "m.onnx", "--budget", "b.toml", "--corpus", "c.txt"]]

    return write
