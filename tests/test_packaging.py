"""setup.cfg against the folders and the imports: what it forgets, a wheel forgets silently."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("analyzer", "exporters", "cli")

# Import name → distribution, where they differ.
DISTRIBUTIONS = {
    "google": "protobuf",
    "keras": "tensorflow",
    "onnx_ad": "onnx-ad",
    "sklearn": "scikit-learn",
}
# onnx itself depends on protobuf, whose error classes are part of its interface.
IMPLIED = {"protobuf"}
# Import names that an extra, and not the installation, brings.
EXTRAS = {"analyzer": {"distributed"}, "exporters": {"torch", "tensorflow"}}


@pytest.fixture(scope="module")
def config():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def sources():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "__pycache__" not in path.parts:
                yield folder, path


def names(text):
    return {re.match(r"[\w.-]+", line)[0].lower() for line in text.strip().splitlines()}


def test_every_package_is_listed(config):
    found = {"mnemoscope." + ".".join(path.parent.relative_to(ROOT).parts) for _, path in sources()}
    listed = config["options"]["packages"].split()
    assert sorted(listed) == sorted(found)
    top = {line.split(" = ")[0] for line in config["options"]["package_dir"].split("\n") if line}
    assert top == {f"mnemoscope.{f}" for f in FOLDERS}


def test_packages_have_an_init():
    for _, path in sources():
        assert (path.parent / "__init__.py").is_file()
    assert not (ROOT / "__init__.py").exists()


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_every_import_is_declared(config):
    required = names(config["options"]["install_requires"])
    extras = {k: names(v) for k, v in config["options.extras_require"].items()}
    # Either build of the runtime gives the same import.
    required |= {"onnxruntime"} if "onnxruntime-gpu" in required else set()
    for folder, path in sources():
        allowed = set(required) | IMPLIED
        for extra in EXTRAS.get(folder, ()):
            allowed |= extras[extra]
        for name in set(imports(path)) - set(sys.stdlib_module_names) - {"mnemoscope"}:
            assert DISTRIBUTIONS.get(name, name).lower() in allowed, f"{path}: {name}"


def test_every_requirement_is_imported(config):
    used = {DISTRIBUTIONS.get(n, n) for _, path in sources() for n in imports(path)}
    # xarray writes through h5netcdf and h5py, which it imports itself.
    unused = names(config["options"]["install_requires"]) - used
    assert unused <= {"h5netcdf", "h5py", "onnxruntime-gpu"}


def test_arrows_point_one_way():
    # cli → exporters → analyzer: the analyzer imports neither, the exporters not the commands.
    for folder, path in sources():
        text = path.read_text(encoding="utf-8")
        for later in FOLDERS[FOLDERS.index(folder) + 1 :]:
            assert f"mnemoscope.{later}" not in text or folder == "cli", path
