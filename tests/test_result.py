"""The result file: what it holds, that it survives the disk, and how it refuses others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from mnemoscope.analyzer import metrics
from mnemoscope.analyzer.errors import ResultError
from mnemoscope.analyzer.result import (
    FORMAT_VERSION,
    build,
    check_state_names,
    encode_attributes,
    open_result,
    save_result,
)
from mnemoscope.analyzer.sums import Sums

BLOCKS, GROUPS, DELAYS, UNITS, SIZE = 5, 2, 4, 9, 3


def planted(rng: np.random.Generator, units: int = UNITS, dtype=np.float64) -> Sums:
    counts = rng.integers(1, 9, (BLOCKS, GROUPS, DELAYS))
    counts[2, 1, 3] = 0  # a block without any word of a group
    counts[:, 1, 2] = 0  # and a delay without any
    sums = rng.standard_normal((BLOCKS, GROUPS, DELAYS, units, SIZE)) * counts[..., None, None]
    half = counts.sum(0) // 2
    half_sum = rng.standard_normal((GROUPS, DELAYS, units, SIZE)) * half[..., None, None]
    return Sums(sums.astype(dtype), counts, half_sum.astype(dtype), half)


def make(sums: dict[str, Sums], **changes) -> xr.DataTree:
    rng = np.random.default_rng(3)
    options = {
        "groups": ["all", "naïve"],
        "embeddings": rng.standard_normal((20, SIZE)),
        "state_info": {"lstm0.c": {"kind": "cell", "layer": 0}},
        "attributes": {"tf32": False, "step": None, "versions": {"numpy": "2"}, "seed": 7},
    }
    return build(sums, **{**options, **changes})


@pytest.fixture
def sums():
    rng = np.random.default_rng(1)
    return {"lstm0.h": planted(rng), "lstm0.c": planted(rng)}


@pytest.fixture
def tree(sums):
    return make(sums)


@pytest.fixture
def saved(tree, tmp_path):
    path = tmp_path / "r.nc"
    save_result(tree, path)
    return path


class TestBuild:
    def test_every_measure_follows_from_the_sums(self, sums, tree):
        for name, s in sums.items():
            state = tree[name]
            counts = s.block_count.sum(0)
            np.testing.assert_array_equal(state["count"], counts)
            for g in range(GROUPS):
                for d in range(DELAYS):
                    if counts[g, d] == 0:
                        for variable in ("singular_values", "selectivity", "noise_floor"):
                            assert np.isnan(state[variable][:, g, d]).all()
                        continue
                    mean = s.block_sum[:, g, d].sum(0) / counts[g, d]
                    np.testing.assert_allclose(state["gradient"][g, d], mean, rtol=1e-6)
                    rest = s.block_sum[:, g, d].sum(0) - s.half_sum[g, d]
                    n = s.half_count[g, d]
                    noise = (s.half_sum[g, d] / n - rest / (counts[g, d] - n)) / 2
                    for i, root in enumerate((np.eye(SIZE), tree["embedding_whitening"].values)):
                        values = np.linalg.svd(mean @ root, compute_uv=False)
                        at = {"normalization": i, "group": g, "delay": d}
                        np.testing.assert_allclose(state["singular_values"][at], values, rtol=1e-10)
                        shares = [values[0] / values.sum(), 1.0]
                        np.testing.assert_allclose(state["selectivity"][at], shares, rtol=1e-10)
                        floor = np.linalg.svd(noise @ root, compute_uv=False)[0]
                        np.testing.assert_allclose(state["noise_floor"][at], floor, rtol=1e-10)

    def test_standard_errors_are_those_of_the_jackknife(self, sums, tree):
        s, root = sums["lstm0.h"], tree["embedding_whitening"].values
        found = tree["lstm0.h"]["singular_values_stderr"][1, 0]
        expected = metrics.jackknife(
            s.block_sum[:, 0], s.block_count[:, 0], lambda m: metrics.singular_values(m @ root)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-7)

    def test_measures_can_be_recomputed_from_the_file_alone(self, saved):
        tree = open_result(saved)
        state = tree["lstm0.h"]
        n = state["block_count"].values.astype(float)
        block = state["block_gradient"].values.astype(float)
        total = np.where(n[..., None, None] > 0, block * n[..., None, None], 0.0)
        expected = metrics.jackknife(
            total, n, lambda m: metrics.selectivity(metrics.singular_values(m))
        )
        np.testing.assert_allclose(
            state["selectivity_stderr"].sel(normalization="none", leading=1), expected, rtol=1e-4
        )

    def test_block_gradients_are_kept_where_they_fit(self, sums):
        size = 4 * sum(s.block_sum.size for s in sums.values())
        assert "block_gradient" in make(sums, block_gradient_limit=size)["lstm0.h"]
        small = make(sums, block_gradient_limit=size - 1)
        assert "block_gradient" not in small["lstm0.h"]
        assert "block_count" in small["lstm0.h"]

    @pytest.mark.parametrize("units", [2, 3, 40])
    def test_any_shape(self, units):
        tree = make({"s": planted(np.random.default_rng(0), units, np.float32)})
        assert tree["s"].sizes["order"] == min(units, SIZE)

    def test_singular_whitening_leaves_zeros_and_says_its_rank(self, sums):
        one_hot = make(sums, embeddings=np.eye(SIZE, dtype=np.float32))
        assert one_hot["embedding_whitening"].attrs["rank"] == SIZE - 1
        assert one_hot["embedding_whitening"].attrs["full_rank"] == 0
        values = one_hot["lstm0.h"]["singular_values"]
        assert (values.sel(normalization="whitened")[0, :, -1] == 0).all()
        assert (values.sel(normalization="none")[0, :, -1] > 0).all()

    def test_everything_has_a_long_name_and_units(self, tree):
        for node in tree.subtree:
            for name, variable in node.variables.items():
                assert variable.attrs["long_name"], name
                assert variable.attrs["units"], name

    @pytest.mark.parametrize(
        "name", ["delay", "embedding_whitening", ".", "a/b", " ", "a\nb", "a\x1bb"]
    )
    def test_refuses_names_that_clash(self, sums, name):
        with pytest.raises(ResultError, match="cannot hold a state named"):
            make({name: sums["lstm0.h"]})
        with pytest.raises(ResultError, match="--state-names"):
            check_state_names([name])


class TestFile:
    def test_round_trip(self, tree, saved):
        found = open_result(saved)
        assert found.identical(tree)
        assert list(found.children) == ["lstm0.h", "lstm0.c"]
        assert found["group"].values.tolist() == ["all", "naïve"]

    def test_attributes_survive(self, saved):
        attrs = open_result(saved).attrs
        assert (attrs["tf32"], attrs["seed"]) == (0, 7)
        assert "step" not in attrs
        assert json.loads(attrs["versions"]) == {"numpy": "2"}

    def test_the_file_is_closed(self, saved):
        open_result(saved)
        os.replace(saved, saved.with_name("moved.nc"))
        saved.write_bytes(b"")

    def test_saving_leaves_no_other_file(self, saved):
        assert [p.name for p in saved.parent.iterdir()] == ["r.nc"]

    def test_a_failed_save_leaves_the_old_file_and_nothing_else(self, tree, saved, monkeypatch):
        before = saved.read_bytes()

        def fail(self, path, **options):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(xr.DataTree, "to_netcdf", fail)
        with pytest.raises(ResultError, match=r"cannot be written to .*r\.nc: No space left"):
            save_result(tree, saved)
        assert saved.read_bytes() == before
        assert [p.name for p in saved.parent.iterdir()] == ["r.nc"]

    def test_a_link_is_followed(self, tree, tmp_path):
        (tmp_path / "to").mkdir()
        link = tmp_path / "link.nc"
        link.symlink_to(tmp_path / "to" / "r.nc")
        save_result(tree, link)
        assert link.is_symlink()
        open_result(tmp_path / "to" / "r.nc")

    def test_missing_folder(self, tree, tmp_path):
        with pytest.raises(ResultError, match="folder that exists"):
            save_result(tree, tmp_path / "nowhere" / "r.nc")


class TestRefusal:
    def test_missing(self, tmp_path):
        with pytest.raises(ResultError, match=r"x\.nc does not exist\. Check the path"):
            open_result(tmp_path / "x.nc")

    def test_a_folder(self, tmp_path):
        with pytest.raises(ResultError, match="is a folder"):
            open_result(tmp_path)

    @pytest.mark.parametrize(
        ("content", "said"), [(b"", "is empty"), (b"hello world", "is no netCDF-4 file")]
    )
    def test_not_netcdf(self, tmp_path, content, said):
        path = tmp_path / "x.nc"
        path.write_bytes(content)
        with pytest.raises(ResultError, match=said):
            open_result(path)

    def test_a_model(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(b"\x08\x08\x12\x07pytorch")
        with pytest.raises(ResultError, match="run mnemoscope analyze on it first"):
            open_result(path)

    @pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
    def test_truncated(self, saved, share):
        data = saved.read_bytes()
        saved.write_bytes(data[: max(16, int(len(data) * share))])
        with pytest.raises(ResultError, match=r"truncated or damaged.*analyze again"):
            open_result(saved)

    def test_another_version(self, tree, tmp_path):
        tree.attrs["format_version"] = FORMAT_VERSION + 1
        save_result(tree, tmp_path / "x.nc")
        expected = (
            f"has result format version {FORMAT_VERSION + 1}, this program reads version "
            f"{FORMAT_VERSION}. Run mnemoscope analyze again"
        )
        with pytest.raises(ResultError, match=expected):
            open_result(tmp_path / "x.nc")

    def test_another_netcdf_file(self, tmp_path):
        xr.Dataset({"x": ("y", [1.0])}).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
        with pytest.raises(ResultError, match="not a mnemoscope result: its attribute format is"):
            open_result(tmp_path / "x.nc")

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda t: t.drop_nodes(["lstm0.h", "lstm0.c"]), "holds no state"),
            (
                lambda t: _root(t, lambda d: d.drop_vars("embedding_whitening")),
                "root has no variable embedding_whit",
            ),
            (lambda t: _without(t, "noise_floor"), "state lstm0.c has no variable noise_floor"),
            (lambda t: _transposed(t), r"count of state lstm0.c has axes \[delay, group\], not"),
            (
                lambda t: _root(t, lambda d: d.assign_coords(leading=[1, 4])),
                r"leading is \[1, 4\], not \[1, 5\]",
            ),
        ],
    )
    def test_wrong_structure(self, tree, tmp_path, spoil, said):
        save_result(spoil(tree), tmp_path / "x.nc")
        with pytest.raises(ResultError, match=said):
            open_result(tmp_path / "x.nc")

    def test_a_file_without_matrices_opens(self, tree, tmp_path):
        save_result(_without(tree, "gradient", "noise", "block_gradient"), tmp_path / "x.nc")
        assert "gradient" not in open_result(tmp_path / "x.nc")["lstm0.c"]


def _root(tree, change):
    tree.dataset = change(tree.to_dataset())
    return tree


def _without(tree, *names):
    tree["lstm0.c"] = xr.DataTree(tree["lstm0.c"].to_dataset(inherit=False).drop_vars(names))
    return tree


def _transposed(tree):
    data = tree["lstm0.c"].to_dataset(inherit=False)
    data["count"] = data["count"].transpose()
    tree["lstm0.c"] = xr.DataTree(data)
    return tree


def test_encode_attributes():
    given = {"a": None, "b": True, "c": np.bool_(False), "d": ["x"], "e": np.float32(1.5), "f": "ü"}
    assert encode_attributes(given) == {"b": 1, "c": 0, "d": '["x"]', "e": 1.5, "f": "ü"}


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    page = Path(__file__).parent.parent / "docs" / "result-format.md"
    if not page.exists():
        pytest.skip("the documentation is not beside the tests")
    rng = np.random.default_rng(0)
    names = {"groups": ["all", "noun"]}
    save_result(make({"lstm0.c": planted(rng)}, **names), tmp_path / "result.nc")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in page.read_text(encoding="utf-8").split("```python\n")[1:]:
        exec(block.split("```")[0], scope)
    assert scope["errors"].shape == (GROUPS, DELAYS)
    assert scope["vt"].shape == (DELAYS, SIZE, SIZE)
    assert "Decay(" in capsys.readouterr().out


def test_the_documentation_names_every_variable(tree):
    page = Path(__file__).parent.parent / "docs" / "result-format.md"
    if not page.exists():
        pytest.skip("the documentation is not beside the tests")
    text = page.read_text(encoding="utf-8")
    for node in tree.subtree:
        for name in [*node.variables, *node.dims]:
            assert f"`{name}`" in text, name
