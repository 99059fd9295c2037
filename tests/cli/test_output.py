"""Output paths are checked before any work."""

from __future__ import annotations

import os

import pytest
from mnemoscope.analyzer._files import replacing
from mnemoscope.analyzer.errors import MnemoscopeError
from mnemoscope.cli._output import check_output


@pytest.mark.parametrize("name", ["new.nc", "old.nc", "link.nc"])
def test_accepts(tmp_path, name):
    (tmp_path / "old.nc").write_text("old")
    (tmp_path / "link.nc").symlink_to(tmp_path / "new.nc")
    before = sorted(tmp_path.iterdir())
    check_output(str(tmp_path / name), inputs=["-", str(tmp_path / "absent")])
    assert sorted(tmp_path.iterdir()) == before


def test_accepts_a_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_output("r.nc")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "is a folder; name the file"),
        ("absent/r.nc", r"there is no folder .*absent\. Create it first"),
        ("file/r.nc", "there is no folder"),
        ("x" * 300, "File name too long. Choose another"),
        ("fifo", "is no ordinary file"),
        ("file", "is also an input; name another file"),
    ],
)
def test_refuses(tmp_path, path, said):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(MnemoscopeError, match=said):
        check_output(str(tmp_path / path), inputs=[str(tmp_path / "file")])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_refuses_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MnemoscopeError, match=r"Permission denied\. Choose another"):
        check_output(str(tmp_path / "r.nc"))


def test_refuses_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def fail(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(MnemoscopeError, match=r"cannot be written: Read-only file system\."):
        check_output(str(tmp_path / "r.nc"))


def test_replacing_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
