"""Groups: what belongs where, however it is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemoscope.analyzer.groups import Groups

LABELS = st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=12)


@given(LABELS)
def test_labels_masks_and_counts_agree(labels: list[set[str]]) -> None:
    groups = Groups.from_labels(labels)
    assert list(groups.names) == sorted({x for these in labels for x in these})
    for name, count in zip(groups.names, groups.count(), strict=True):
        expected = np.array([name in these for these in labels])
        np.testing.assert_array_equal(groups.mask(name), expected)
        assert count == expected.sum()
    masks = np.array([groups.mask(n) for n in groups.names], int).reshape(len(groups), len(labels))
    np.testing.assert_array_equal(groups.shared(), masks @ masks.T)
    if len(groups):
        again = Groups.from_masks({n: groups.mask(n) for n in groups.names})
        np.testing.assert_array_equal(again.start, groups.start)
        np.testing.assert_array_equal(again.group, groups.group)


@given(LABELS)
def test_keys_tell_memberships_apart(labels: list[set[str]]) -> None:
    keys = Groups.from_labels(labels).keys()
    for i, a in enumerate(labels):
        for j, b in enumerate(labels):
            assert (keys[i] == keys[j]) == (a == b)


@given(LABELS)
def test_all_comes_first_and_unions_may_overlap(labels: list[set[str]]) -> None:
    groups = Groups.from_labels(labels)
    whole = groups.with_all()
    assert whole.names[0] == "all"
    assert whole.mask("all").all()
    for name in groups.names:
        np.testing.assert_array_equal(whole.mask(name), groups.mask(name))
    wanted = {"x": [n for n in groups.names if n in "ab"], "y": list(groups.names), "z": []}
    unions = groups.unions(wanted)
    assert unions.names == ("x", "y", "z")
    for name, parts in wanted.items():
        expected = np.array([bool(set(parts) & these) for these in labels])
        np.testing.assert_array_equal(unions.mask(name), expected)


def test_numbers_and_everything() -> None:
    groups = Groups.from_numbers(["the", "cat"], np.array([0, -1, 1, 0]))
    np.testing.assert_array_equal(groups.mask("the"), [True, False, False, True])
    np.testing.assert_array_equal(groups.mask("cat"), [False, False, True, False])
    assert Groups.everything(3).mask("all").all()


def test_unknown_groups_are_refused() -> None:
    groups = Groups.from_numbers(["the"], np.array([0]))
    with pytest.raises(KeyError):
        groups.mask("dog")
    with pytest.raises(KeyError):
        groups.unions({"x": ["dog"]})
    with pytest.raises(ValueError, match="'all'"):
        Groups.everything(2).with_all()


@given(labels=LABELS, data=st.data())
def test_some_of_the_positions(labels: list[set[str]], data: st.DataObject) -> None:
    groups = Groups.from_labels(labels)
    chosen = data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1))
    found = groups.select(np.array(chosen))
    assert found.positions == len(chosen)
    for i, position in enumerate(chosen):
        np.testing.assert_array_equal(found.at(i), groups.at(position))
