"""Every way of computing the Jacobians, by name."""

from __future__ import annotations

from collections.abc import Callable

from .jax_peer import Jax
from .onnx_ad_peer import OnnxAd
from .ours import Ours
from .peer import Peer
from .shapes import Job
from .torch_peers import Compiled, ForwardMode, ReverseMode

REFERENCE = "vmap(jacfwd)"
OURS = "jvp"

PEERS: dict[str, Callable[[Job], Peer]] = {
    REFERENCE: ForwardMode,
    "compiled": Compiled,
    "reverse": ReverseMode,
    "jax": Jax,
    "onnx-ad": OnnxAd,
    "fd": lambda job: Ours(job, "fd"),
    OURS: Ours,
}

TITLES = {
    REFERENCE: "torch.func vmap(jacfwd)",
    "compiled": "  under torch.compile",
    "reverse": "autograd, batched rows",
    "jax": "JAX jit(vmap(jacfwd))",
    "fd": "mnemoscope fd",
    OURS: "mnemoscope jvp",
}
