"""``python -m tests.fuzz``: all cases, or one of them with its files kept for inspection."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np


def main() -> int:
    """Run what the call asks for; 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--case", type=int, help="run this case alone, and keep its files")
    parser.add_argument("--files", default="fuzz-case", help="where --case writes them")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, help="how many; default all")
    parser.add_argument("--sample", type=int, help="as many, spread over all of them")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", help="write every outcome here")
    asked = parser.parse_args()
    from . import cases, harness

    harness.warm()
    if asked.case is not None:
        folder = Path(asked.files) / str(asked.case)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        outcome = harness.run_case(asked.case, *cases.case(asked.case), folder)
        print(f"case {outcome.number}, {outcome.mutator}; files in {folder}")
        for call in outcome.calls:
            print(f"$ mnemoscope {' '.join(call.arguments)}")
            print(f"  status {call.status}, signal {call.signal}, {call.seconds:.1f} s, "
                  f"{call.memory / 2**20:.0f} MiB")  # fmt: skip
            print("".join(f"  {line[:400]}\n" for line in call.stderr.splitlines()[-30:]), end="")
        print("\n".join(f"FAILED {f}" for f in outcome.failures) or "as it should be")
        return int(bool(outcome.failures))
    total = cases.MODELS + cases.TEXTS
    stop = total if asked.count is None else min(total, asked.first + asked.count)
    numbers = list(range(asked.first, stop))
    if asked.sample is not None:
        rng = np.random.default_rng(0)
        numbers = sorted(int(n) for n in rng.choice(numbers, asked.sample, replace=False))
    start = time.monotonic()
    done = 0

    def seen(outcome: harness.Outcome) -> None:
        nonlocal done
        done += 1
        for failure in outcome.failures:
            print(f"case {outcome.number} ({outcome.mutator}): {failure}", flush=True)
        if done % 250 == 0:
            print(f"… {done} of {len(numbers)} cases, {time.monotonic() - start:.0f} s",
                  file=sys.stderr, flush=True)  # fmt: skip

    outcomes = harness.run_all(numbers, cases.case, asked.jobs, seen)
    print(harness.table(outcomes))
    left_out = sum(not o.calls for o in outcomes)
    failed = [o.number for o in outcomes if o.failures]
    print(f"{len(outcomes)} cases in {time.monotonic() - start:.0f} s; {left_out} left out, since "
          f"their command is not in this program; {len(failed)} failed: {failed}")  # fmt: skip
    if asked.json:
        Path(asked.json).write_text(json.dumps([asdict(o) for o in outcomes]))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
