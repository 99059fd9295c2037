"""PyTorch forms with hand-written oracles: the cases of the main job."""

from __future__ import annotations

from pathlib import Path

import oracle
import torch
from forms import Form
from mnemoscope.exporters import pytorch


def _form(case: oracle.Case) -> Form:
    def export(folder: Path) -> Path:
        path = folder / "m.onnx"
        pytorch.export(oracle.build(case), path, vocabulary_size=oracle.V)
        return path

    def mean(ids, delays):
        return oracle.mean_gradients(case, oracle.build(case), torch.tensor(ids), delays)

    return Form(f"PyTorch {case.name}", export, mean)


FORMS = [_form(case) for case in oracle.CASES]

__all__ = ["FORMS"]
