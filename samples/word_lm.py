"""The word language model of Verwimp et al. (2020, section 4.3.1): train it, export it.

    python samples/word_lm.py train TRAIN.txt --valid VALID.txt --test TEST.txt -o runs/name
    python samples/word_lm.py export runs/name -o m.onnx
    python samples/word_lm.py export runs/name -o m-untrained.onnx --untrained
    python samples/word_lm.py train TRAIN.txt -o runs/steps --keep-epochs

The text holds one sentence a line, its tokens separated by white space; every line, an empty one
too, ends in an ``<eos>`` that the model reads and predicts like a word.

A run is a folder: ``best.safetensors`` (weights of the epoch with the lowest validation
perplexity), ``last.safetensors`` (where ``--resume`` goes on), ``vocabulary.txt`` (one token a
line, its id is its line number), ``embeddings.safetensors`` (with ``--embeddings``: the vectors
that training began with), ``epochs/NNN.onnx`` (with ``--keep-epochs``: the model after each epoch,
000 the untrained one) and ``config.json`` (settings, seed, versions, one entry per epoch). All
of it is written after every epoch, so a run may be stopped at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
CELLS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}

State = Any  # a tensor (GRU, RNN) or a pair of tensors (LSTM), each [layer, batch, unit]


class WordLM(nn.Module):
    """Embedding, recurrent layers, dropout, output layer.

    Args:
        vocabulary_size: V.
        cell: ``LSTM``, ``GRU`` or ``RNN`` (tanh).
        embedding: Size of the word embeddings.
        hidden: Units per recurrent layer.
        layers: Recurrent layers.
        dropout: Probability of dropping a unit of what the output layer reads. Nothing else is
            dropped: a masked input would blur what the state keeps of it.
    """

    def __init__(
        self,
        vocabulary_size: int,
        cell: str = "LSTM",
        embedding: int = 64,
        hidden: int = 256,
        layers: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        self.rnn = CELLS[cell](embedding, hidden, layers, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, vocabulary_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.05, 0.05)

    def read(self, tokens: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        """Tokens ``[N, T]`` to what the output layer reads, ``[N, T, hidden]``, and the state."""
        hidden, state = self.rnn(self.embedding(tokens), state)
        return self.dropout(hidden), state

    def forward(self, tokens: torch.Tensor, state: State = None) -> tuple[torch.Tensor, State]:
        """Tokens ``[N, T]`` to logits ``[N, T, V]`` and the state; None is a state of zeros."""
        hidden, state = self.read(tokens, state)
        return self.output(hidden), state


# Text ----------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[list[str]]:
    """The lines of a UTF-8 text as lists of tokens, without the end-of-line token."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} must be UTF-8 text: {error}.") from error
    # Not splitlines(): it also breaks at form feeds and the like, which are white space here.
    lines = [line.split() for line in text.removesuffix("\n").split("\n")]
    if not any(lines):
        raise click.UsageError(f"{path} holds no word; expected one sentence a line.")
    return lines


def build_vocabulary(lines: list[list[str]], size: int | None = None) -> list[str]:
    """The tokens of `lines` by falling frequency, `size` at most, ``<unk>``, ``<eos>`` included."""
    counts = Counter(token for line in lines for token in line)
    counts[END_OF_LINE] += len(lines)
    kept = [token for token, _ in counts.most_common()]  # ties: the first to appear
    if size is not None:
        if size < 3:
            raise click.UsageError(f"A vocabulary needs 3 tokens or more, not {size}.")
        rest = [token for token in kept if token not in (UNKNOWN, END_OF_LINE)]
        words = set(rest[: size - 2])
        for token in rest[size - 2 :]:
            counts[UNKNOWN] += counts.pop(token)
        kept = [t for t, _ in counts.most_common() if t in words or t in (UNKNOWN, END_OF_LINE)]
    return kept if UNKNOWN in kept else [*kept, UNKNOWN]


def encode(lines: list[list[str]], vocabulary: list[str]) -> torch.Tensor:
    """Token ids ``[tokens]`` of the whole text, an ``<eos>`` after every line."""
    ids = {token: i for i, token in enumerate(vocabulary)}
    unknown, end = ids[UNKNOWN], ids[END_OF_LINE]
    flat = [i for line in lines for i in (*(ids.get(t, unknown) for t in line), end)]
    return torch.tensor(flat, dtype=torch.int32)


# Training ------------------------------------------------------------------------------------


def learning_rate(epoch: int, initial: float = 1.0, decay: float = 0.8, flat: int = 6) -> float:
    """`initial` for the first `flat` epochs (counted from 1), then `decay` times the one before."""
    return initial * decay ** max(epoch - flat, 0)


def batches(ids: torch.Tensor, batch: int, steps: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Consecutive pieces ``[batch, steps]`` of `batch` streams: the inputs and the next tokens.

    Each stream is a contiguous part of the text and goes on in the next piece, so the state can
    be carried; the last piece is shorter. Tokens left over after cutting equal streams are
    dropped (fewer than `batch`).
    """
    length = (len(ids) - 1) // batch
    inputs = ids[: batch * length].view(batch, length)
    targets = ids[1 : batch * length + 1].view(batch, length)
    for start in range(0, length, steps):
        yield inputs[:, start : start + steps], targets[:, start : start + steps].long()


def detach(state: State) -> State:
    """The state's values without their history: where truncated backpropagation stops."""
    return tuple(map(detach, state)) if isinstance(state, tuple) else state.detach()


def steps_at_once(batch: int, vocabulary_size: int) -> int:
    """Time steps whose logits fill 64 MB: all 200 would take 532 MB at 20 × 33,278."""
    return max(1, 2**24 // (batch * vocabulary_size))


def backward(
    model: WordLM, tokens: torch.Tensor, targets: torch.Tensor, state: State
) -> tuple[torch.Tensor, State]:
    """Add the gradient of one mini-batch to the parameters; give its summed loss and the state.

    The loss that is differentiated is summed over time steps and averaged over the batch, as in
    the paper's published code: with a learning rate of 1 and the norm clipped at 5, a mean over
    steps would make gradients 200 times smaller and learning too slow to get anywhere.

    The output layer runs over a few time steps at a time, forward and straight back, so that the
    logits of the whole mini-batch never exist at once.
    """
    hidden, state = model.read(tokens, state)
    cut = hidden.detach().requires_grad_()
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    some = steps_at_once(len(tokens), model.output.out_features)
    for part, wanted in zip(cut.split(some, dim=1), targets.split(some, dim=1), strict=True):
        logits = model.output(part)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
        (loss / len(tokens)).backward()
        total += loss.detach()
    hidden.backward(cut.grad)
    return total, detach(state)


def train_epoch(
    model: WordLM,
    ids: torch.Tensor,
    rate: float,
    *,
    batch: int = 20,
    steps: int = 200,
    clip: float = 5.0,
    report: Callable[[int, float], None] = lambda tokens, loss: None,
) -> float:
    """One pass over `ids` by SGD; the mean loss per token (with dropout on).

    `report` is called after each update with the tokens and the summed loss of its mini-batch.
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    state: State = None
    total, count = 0.0, 0
    for tokens, targets in batches(ids, batch, steps):
        optimizer.zero_grad()
        loss, state = backward(model, tokens, targets, state)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        total, count = total + loss.item(), count + targets.numel()
        report(targets.numel(), loss.item())
    return total / count


@torch.no_grad()
def evaluate(model: WordLM, ids: torch.Tensor) -> float:
    """Perplexity of the text read as one stream; every token after the first is predicted."""
    model.eval()
    state: State = None
    total = 0.0
    for tokens, targets in batches(ids, 1, steps_at_once(1, model.output.out_features)):
        logits, state = model(tokens, state)
        total += F.cross_entropy(logits[0], targets[0], reduction="sum").item()
    return perplexity(total / (len(ids) - 1))


def perplexity(loss: float) -> float:
    """The exponential of a mean loss; infinite rather than an overflow."""
    return math.exp(loss) if loss < 700 else math.inf


def unigram_perplexity(train: torch.Tensor, ids: torch.Tensor, vocabulary_size: int) -> float:
    """Perplexity of `ids` under the token frequencies of `train` plus one: no memory at all."""
    counts = torch.bincount(train, minlength=vocabulary_size).double() + 1
    return math.exp(-(counts / counts.sum()).log()[ids[1:].long()].mean().item())


# Run folders ---------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, moved there when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with bare newlines, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_weights(model: WordLM, path: Path, epoch: int) -> None:
    """Write the parameters, with the number of the epoch that they come from."""
    with replacing(path) as temporary:
        save_file(model.state_dict(), temporary, metadata={"epoch": str(epoch)})


def saved_epoch(path: Path) -> int:
    """The epoch that `save_weights` noted."""
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["epoch"])


def read_run(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Settings and vocabulary of a run."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vocabulary = (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise click.UsageError(
            f"{folder} is not the folder of a run ({error}); make one with: word_lm.py train"
        ) from error
    return config, vocabulary


def initial_model(config: dict[str, Any], folder: Path | None = None) -> WordLM:
    """The run's model before training: the same seed draws the same weights.

    Where the run was given word vectors, they take the place of the random ones, for the words
    that had one; `use_vectors` put them into the folder.
    """
    torch.manual_seed(config["seed"])
    model = WordLM(**config["model"])
    if folder is not None and config.get("embeddings"):
        given = load_file(folder / "embeddings.safetensors")
        with torch.no_grad():
            model.embedding.weight[given["found"]] = given["vectors"][given["found"]]
        model.embedding.weight.requires_grad_(not config["embeddings"]["frozen"])
    return model


def vectors_for(
    path: Path, vocabulary: list[str], size: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The vectors of the vocabulary's words, as a run's folder keeps them, and what to note."""
    from word_vectors import read_vectors

    vectors, found = read_vectors(path, {word: i for i, word in enumerate(vocabulary)}, size)
    if not found.any():
        raise click.UsageError(f"{path} has a vector for no word of the vocabulary.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = {"vectors": torch.from_numpy(vectors), "found": torch.from_numpy(found)}
    return tensors, {"file": path.name, "sha256": digest, "words": int(found.sum())}


def exporter() -> Callable[..., Any]:
    """The function that writes a module as a memory model."""
    try:
        from mnemoscope.exporters.pytorch import export
    except ImportError as error:
        raise click.UsageError(
            f"Exporting needs mnemoscope and its torch extra ({error}); "
            "from the repository: pip install -e '.[torch]', or train with --no-export."
        ) from error
    return export


def export_run(folder: Path, path: Path, *, untrained: bool = False) -> None:
    """Write a run's best weights, or those it started from, as a memory model."""
    config, vocabulary = read_run(folder)
    model = initial_model(config, folder)
    if not untrained:
        model.load_state_dict(load_file(folder / "best.safetensors"))
    write_model(model, vocabulary, path)


def write_model(model: WordLM, vocabulary: list[str], path: Path) -> None:
    """Write a module as a memory model."""
    export = exporter()
    from mnemoscope.analyzer.errors import MnemoscopeError

    try:
        export(model, path, vocabulary=vocabulary, unknown=UNKNOWN, end_of_line=END_OF_LINE)
    except MnemoscopeError as error:
        raise click.UsageError(str(error)) from error


def peak_memory_mb() -> int | None:
    """Most main memory this process ever held, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


# Command line --------------------------------------------------------------------------------


class Reporter:
    """Progress of an epoch: a bar on a terminal, a plain line every `every` updates elsewhere."""

    def __init__(self, label: str, total: int, every: int) -> None:
        self.label, self.total, self.every = label, total, every
        self.start = time.perf_counter()
        self.tokens = self.updates = 0
        self.loss = 0.0
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(label, total=total)

    def __enter__(self) -> Reporter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, tokens: int, loss: float) -> None:
        self.tokens, self.updates = self.tokens + tokens, self.updates + 1
        self.loss += loss
        if not math.isfinite(self.loss):
            raise click.ClickException(
                "The loss is no longer finite; try a lower --learning-rate or --clip."
            )
        speed = self.tokens / (time.perf_counter() - self.start)
        text = (
            f"{self.label}  {self.tokens:,} of {self.total:,} tokens  {speed:,.0f}/s  "
            f"perplexity {perplexity(self.loss / self.tokens):,.1f}"
        )
        if self.bar:
            self.bar.update(self.task, completed=self.tokens, description=text)
        elif self.updates % self.every == 0:
            click.echo(text)


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
TEXT = click.Path(exists=True, dir_okay=False, path_type=Path)
PART = click.FloatRange(0, 1, max_open=True)
COUNT = click.IntRange(min=1)


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Train a word language model and export it for mnemoscope."""


@main.command()
@click.argument("train", type=TEXT)
@click.option("--valid", type=TEXT, help="Default: 10 % of TRAIN's lines, from its end.")
@click.option("--test", type=TEXT, help="Default: none, or 10 % more of TRAIN without --valid.")
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--cell", type=click.Choice(list(CELLS), case_sensitive=False), default="LSTM")
@click.option("--embedding", type=COUNT, default=64)
@click.option("--hidden", type=COUNT, default=256, help="The paper's: 128, 256, 512.")
@click.option("--layers", type=COUNT, default=1)
@click.option("--dropout", type=PART, default=0.5, help="On the output of the recurrent layers.")
@click.option("--vocabulary-size", type=COUNT, help="Keep the most frequent; the rest is <unk>.")
@click.option("--epochs", type=COUNT, default=10, help="At most; the paper's code allows 39.")
@click.option("--batch", type=COUNT, default=20, help="Streams read side by side.")
@click.option("--steps", type=COUNT, default=200, help="Steps of backpropagation through time.")
@click.option("--learning-rate", "rate", type=click.FloatRange(0, min_open=True), default=1.0)
@click.option("--decay", type=click.FloatRange(0, 1, min_open=True), default=0.8)
@click.option("--flat-epochs", type=click.IntRange(min=0), default=6, help="Before the decay.")
@click.option("--clip", type=click.FloatRange(0, min_open=True), default=5.0)
@click.option(
    "--embeddings",
    type=TEXT,
    help="Word vectors to begin with, as text of word2vec or GloVe.  [random]",
)
@click.option("--freeze-embeddings", is_flag=True, help="Do not train the embeddings.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--seed", type=int, default=1)
@click.option("--resume", is_flag=True, help="Go on with the run in --output.")
@click.option(
    "--keep-epochs", is_flag=True, help="Write epochs/NNN.onnx too, for mnemoscope sweep."
)
@click.option("--no-export", is_flag=True, help="Do not write model.onnx into the folder.")
@click.option("--log-every", type=COUNT, default=50, help="Updates per line off a terminal.")
def train(
    train: Path,
    valid: Path | None,
    test: Path | None,
    output: Path,
    cell: str,
    embedding: int,
    hidden: int,
    layers: int,
    dropout: float,
    vocabulary_size: int | None,
    epochs: int,
    batch: int,
    steps: int,
    rate: float,
    decay: float,
    flat_epochs: int,
    clip: float,
    embeddings: Path | None,
    freeze_embeddings: bool,
    device: str,
    seed: int,
    resume: bool,
    keep_epochs: bool,
    no_export: bool,
    log_every: int,
) -> None:
    """Train on the text TRAIN, keep the epoch with the best validation perplexity, export it.

    Example: python samples/word_lm.py train corpus.txt -o runs/mine --vocabulary-size 10000
    """
    if keep_epochs and no_export:
        raise click.UsageError("--keep-epochs exports every epoch; leave out --no-export.")
    if not no_export:
        exporter()  # what is missing is missed now, not after hours of training
    if freeze_embeddings and embeddings is None:
        raise click.UsageError("--freeze-embeddings would keep random ones; give --embeddings.")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: PyTorch finds no CUDA device here.")
    parts = {"train": read_lines(train)}
    for name, path in (("valid", valid), ("test", test)):
        if path is not None:
            parts[name] = read_lines(path)
    if valid is None:
        tenth = max(1, len(parts["train"]) // 10)
        for name in ("test", "valid"):
            if name not in parts:
                parts["train"], parts[name] = parts["train"][:-tenth], parts["train"][-tenth:]
    if not any(parts["train"]):
        raise click.UsageError(f"{train} is too short to hold lines out; give --valid.")
    vocabulary = build_vocabulary(parts["train"], vocabulary_size)
    ids = {name: encode(lines, vocabulary) for name, lines in parts.items()}
    for name, smallest in (("train", batch + 1), ("valid", 2), ("test", 2)):
        if name in ids and len(ids[name]) < smallest:
            raise click.UsageError(
                f"The {name} text has {len(ids[name])} tokens and needs {smallest} or more."
            )

    unknown = vocabulary.index(UNKNOWN)
    config: dict[str, Any] = {
        "model": {
            "vocabulary_size": len(vocabulary),
            "cell": cell,
            "embedding": embedding,
            "hidden": hidden,
            "layers": layers,
            "dropout": dropout,
        },
        "seed": seed,
        "training": {
            "batch": batch,
            "steps": steps,
            "learning_rate": rate,
            "decay": decay,
            "flat_epochs": flat_epochs,
            "clip": clip,
        },
        "data": {
            name: {
                "tokens": len(part),
                "unknown": int((part == unknown).sum()),
                "sha256": hashlib.sha256(part.numpy().tobytes()).hexdigest(),
                "unigram_perplexity": unigram_perplexity(ids["train"], part, len(vocabulary)),
            }
            for name, part in ids.items()
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "epochs": [],
    }
    if not resume and (output / "config.json").exists():
        raise click.UsageError(f"{output} holds a run already; --resume goes on with it.")
    vectors = {}
    if embeddings is not None:
        vectors, noted = vectors_for(embeddings, vocabulary, embedding)
        config["embeddings"] = {**noted, "frozen": freeze_embeddings}
        click.echo(f"{noted['words']:,} of {len(vocabulary):,} words have a vector")
    if resume:
        _check_run(output, config, vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    if vectors:
        with replacing(output / "embeddings.safetensors") as temporary:
            save_file(vectors, temporary)
    model = initial_model(config, output)
    done = _open_run(output, config, model) if resume else 0
    write_text(output / "vocabulary.txt", "".join(f"{token}\n" for token in vocabulary))

    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    config["device"] = torch.cuda.get_device_name() if where.type == "cuda" else "cpu"
    model.to(where)
    ids = {name: part.to(where) for name, part in ids.items()}
    sizes = ", ".join(f"{name} {len(part):,}" for name, part in ids.items())
    click.echo(
        f"{cell} {embedding}/{hidden}, {len(vocabulary):,} words, tokens: {sizes}, "
        f"unigram perplexity {config['data']['valid']['unigram_perplexity']:,.1f}, on {where}"
    )
    for name in ids.keys() - {"train"}:
        if config["data"][name]["unknown"] and not config["data"]["train"]["unknown"]:
            click.echo(
                f"The {name} text has words that {train.name} lacks, and nothing there teaches "
                f"{UNKNOWN}: its perplexity will be poor. --vocabulary-size helps."
            )
    if keep_epochs:
        (output / "epochs").mkdir(exist_ok=True)
        if not done:
            write_model(model, vocabulary, output / "epochs" / "000.onnx")
    best = min((e["valid_perplexity"] for e in config["epochs"]), default=math.inf)
    for epoch in range(done + 1, epochs + 1):
        # Seeded per epoch: a resumed run draws the same dropout masks as an unbroken one.
        torch.manual_seed(seed * 100_003 + epoch)
        now = learning_rate(epoch, rate, decay, flat_epochs)
        start = time.perf_counter()
        total = (len(ids["train"]) - 1) // batch * batch
        with Reporter(f"epoch {epoch}", total, log_every) as report:
            loss = train_epoch(
                model, ids["train"], now, batch=batch, steps=steps, clip=clip, report=report
            )
        trained = time.perf_counter()
        entry = {
            "epoch": epoch,
            "learning_rate": now,
            "train_perplexity": perplexity(loss),
            "valid_perplexity": evaluate(model, ids["valid"]),
            "train_seconds": round(trained - start, 2),
            "valid_seconds": round(time.perf_counter() - trained, 2),
            "tokens_per_second": round(total / (trained - start)),
            "peak_memory_mb": peak_memory_mb(),
        }
        config["epochs"].append(entry)
        better = entry["valid_perplexity"] < best
        if better:
            best, config["best_epoch"] = entry["valid_perplexity"], epoch
            save_weights(model, output / "best.safetensors", epoch)
        if keep_epochs:
            write_model(model, vocabulary, output / "epochs" / f"{epoch:03}.onnx")
        # Last of all the weights that --resume trusts: what a stop cuts short is done again.
        write_text(output / "config.json", json.dumps(config, indent=1) + "\n")
        save_weights(model, output / "last.safetensors", epoch)
        click.echo(
            f"epoch {epoch}  learning rate {now:.3g}  train perplexity {perplexity(loss):,.1f}  "
            f"valid perplexity {entry['valid_perplexity']:,.1f}{' *' if better else ''}  "
            f"{entry['train_seconds'] + entry['valid_seconds']:,.0f} s"
        )
    if "best_epoch" not in config:
        raise click.ClickException("No epoch reached a finite validation perplexity.")
    model.load_state_dict(load_file(output / "best.safetensors"))
    config["perplexity"] = {n: evaluate(model, ids[n]) for n in ("valid", "test") if n in ids}
    write_text(output / "config.json", json.dumps(config, indent=1) + "\n")
    found = ", ".join(f"{name} {value:,.1f}" for name, value in config["perplexity"].items())
    click.echo(f"best epoch {config['best_epoch']}: perplexity {found}")
    if not no_export:
        export_run(output, output / "model.onnx")
        click.echo(f"wrote {output / 'model.onnx'}")


def _check_run(output: Path, config: dict[str, Any], vocabulary: list[str]) -> None:
    """Refuse to go on with a run of other settings."""
    old, words = read_run(output)
    for key in ("model", "seed", "training", "data", "embeddings"):
        if old.get(key) != config.get(key):
            raise click.UsageError(
                f"{output} was trained with another {key} ({old.get(key)}); "
                "resume with the same text and options, or choose another --output."
            )
    if words != vocabulary:
        raise click.UsageError(f"{output} was trained with another vocabulary.")


def _open_run(output: Path, config: dict[str, Any], model: WordLM) -> int:
    """Load the last weights and the log of a run into `model` and `config`; its epochs so far."""
    old, _ = read_run(output)
    last = output / "last.safetensors"
    if not last.exists():
        return 0
    done = saved_epoch(last)
    model.load_state_dict(load_file(last))
    config["epochs"] = old["epochs"][:done]
    config["best_epoch"] = min(config["epochs"], key=lambda e: e["valid_perplexity"])["epoch"]
    return done


@main.command("export")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=FILE, required=True, help="The .onnx file to write.")
@click.option("--untrained", is_flag=True, help="The random weights that the run started from.")
def export_command(run: Path, output: Path, untrained: bool) -> None:
    """Write the model of the folder RUN as an ONNX file with roles.

    Example: python samples/word_lm.py export runs/mine -o mine.onnx
    """
    export_run(run, output, untrained=untrained)
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
