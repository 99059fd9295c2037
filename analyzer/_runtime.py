"""All dealings with ONNX Runtime: sessions, providers, buffers."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort

from ._double import write_out
from ._limits import limited
from .errors import ModelError, ResourceError

# It puts a constant factor into an attribute of the product, which is of single precision.
_ROUNDING = ["MatMulScaleFusion"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# Warnings about unused initialisers or device discovery are of no use to a user; errors arrive
# as exceptions.
ort.set_default_logger_severity(4)


def session(
    model: onnx.ModelProto,
    provider: str = CPU,
    *,
    threads: int | None = None,
    tf32: bool = False,
    optimize: bool = True,
    spinning: bool = True,
    profile: bool = False,
) -> ort.InferenceSession:
    """A session that runs `model` on `provider` and on no other.

    Args:
        model: The graph.
        provider: What runs it.
        threads: Within one operator; None lets ONNX Runtime choose.
        tf32: Let CUDA round the factors of products to TF32.
        optimize: Let ONNX Runtime fuse operators.
        spinning: Keep idle threads busy waiting: faster alone, a nuisance to other threads.
        profile: Write down what runs where, for `require_placement`.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        ResourceError: `provider` was asked for and is not what runs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(tempfile.mkdtemp(), "profile")
    providers: list = [CPU]
    if provider == CUDA:
        # Without this entry a node that CUDA lacks would quietly run on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # Grown by what is asked for: by powers of two, up to half of the card would lie idle.
        providers = [(CUDA, {"use_tf32": "1" if tf32 else "0",
                             "arena_extend_strategy": "kSameAsRequested"})]  # fmt: skip
    try:
        data = write_out(model).SerializeToString()
        with limited("loading the model", len(data)):
            made = ort.InferenceSession(
                data, options, providers=providers, disabled_optimizers=_ROUNDING
            )
    except Exception as error:
        if provider == CUDA:
            raise ResourceError(f"CUDA cannot run this model: {said(error)}") from error
        raise ModelError(f"ONNX Runtime cannot load the model: {said(error)}") from error
    if provider not in made.get_providers():
        raise ResourceError(
            f"The session was to run on {provider} but runs on {', '.join(made.get_providers())}."
        )
    return made


def require_placement(profile: str, provider: str) -> Counter[str]:
    """Refuse what ran on another provider than asked for, by what ONNX Runtime wrote down.

    Args:
        profile: The file, which is removed together with its folder.
        provider: What every node was to run on.

    Returns:
        How many nodes of each operator ran.

    Raises:
        ResourceError: A node ran elsewhere, or the file names none.
    """
    with open(profile, encoding="utf-8") as file:
        events = json.load(file)
    shutil.rmtree(os.path.dirname(profile))
    ran = [e["args"] for e in events if e.get("cat") == "Node" and "provider" in e.get("args", {})]
    elsewhere = Counter(f"{a['op_name']} on {a['provider']}" for a in ran
                        if a["provider"] != provider)  # fmt: skip
    if elsewhere or not ran:
        found = ", ".join(elsewhere) or "no node at all"
        raise ResourceError(f"Every node was to run on {provider}; ONNX Runtime ran {found}.")
    return Counter(a["op_name"] for a in ran)


def said(error: Exception) -> str:
    """What a native library says in one line, without its codes, source paths and C++ names."""
    text = (str(error).strip().splitlines() or ["it says no more"])[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    # The loops that this program puts around a step are none of the model's.
    text = re.sub(r"^Non-zero status code .*? Scan node\. Name:'' Status Message: ", "", text)
    text = re.sub(r"/\S+:\d+ \S.*?\) ", "", text)
    text = re.sub(r"\S*\.cc:\d+:? \w*:? ?(Assertion `[^`]*` failed: )?", "", text)
    text = re.sub(r"(const )?\[with .*?\] (?=\w)", "", text)  # of a template's signature
    text = text.replace("std::bad_alloc", "there is not enough memory")
    return re.sub(r"\[?\b\w+(?:Error|Exception)\b\]?:? *", "", text)[:500]


def run(
    made: ort.InferenceSession,
    outputs: list[str] | None,
    feeds: dict[str, np.ndarray],
    where: str = "",
    into: Mapping[str, np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Run a session; what the graph refuses becomes a `ModelError` that says `where`.

    Outputs that `into` names are written to the contiguous arrays that it gives.
    """
    try:
        if not into:
            return made.run(outputs, feeds)
        binding = made.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in outputs or [o.name for o in made.get_outputs()]:
            if (room := into.get(name)) is None:
                binding.bind_output(name)
            else:
                binding.bind_output(name, "cpu", 0, room.dtype.type, room.shape, room.ctypes.data)
        made.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]
    except Exception as error:
        raise failed(error, where) from error


def failed(error: Exception, where: str = "") -> ModelError:
    """What a run that ONNX Runtime gave up becomes."""
    return ModelError(f"The model does not run{where and ' '}{where}: {said(error)}")


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """`model` with other tensors of its main graph as outputs."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return exposed


def evaluate(
    model: onnx.ModelProto, names: Sequence[str], feeds: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Values of any tensors of the main graph, optional outputs that a node omits left out."""
    if not names:
        return {}
    # Unoptimised, since a fusion would remove tensors that are asked for.
    made = session(with_outputs(model, names), optimize=False)
    with limited("one run of the model", model.ByteSize()):
        values = run(made, list(names), feeds)
    return {n: np.asarray(v) for n, v in zip(names, values, strict=True)}


def providers() -> dict[str, bool]:
    """Which of the providers that this program can use are usable here."""
    return {"cpu": True, "cuda": cuda_problem() is None}


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here; None when it can."""
    if CUDA not in ort.get_available_providers():
        return "this build of onnxruntime has no CUDA provider (install onnxruntime-gpu)"
    devices = [*glob.glob("/dev/nvidia[0-9]*"), *glob.glob("/dev/dxg")]
    if os.name == "posix" and not devices:
        return "this machine shows no NVIDIA device"
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    from onnx import helper

    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", [x], [y])
    try:
        session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)],
                                  ir_version=8), CUDA)  # fmt: skip
    except ResourceError as error:
        return str(error)
    return None


def choose_provider(asked: str | None) -> tuple[str, str]:
    """The provider to use and one line that says which and why.

    Args:
        asked: ``cpu``, ``cuda`` or ``auto`` (None means ``auto``).

    Raises:
        ResourceError: ``cuda`` was asked for and cannot be used.
    """
    if asked not in (None, "auto", "cpu", "cuda"):
        raise ResourceError(f"The provider must be auto, cpu or cuda, not {asked!r}.")
    if asked == "cpu":
        return CPU, "Running on the CPU, as asked."
    problem = cuda_problem()
    if asked == "cuda":
        if problem:
            raise ResourceError(
                f"--provider cuda was asked for, but {problem}. Use --provider cpu, or auto."
            )
        return CUDA, "Running on CUDA, as asked."
    if problem:
        return CPU, f"Running on the CPU: {problem}."
    return CUDA, "Running on CUDA: a usable device was found."
