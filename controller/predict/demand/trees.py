"""What do many regression trees together say of many rows?

Trees are walked one row at a time elsewhere, and a processor then waits for memory at each
step. Here rows are bits. A condition (a column is above a threshold) is asked of thousands of
rows at once and packed into words; which leaf each row comes to follows by AND and OR of such
words, for several trees at once; the number of the leaf is read back from its bits, and its
value from a table (after Lucchese et al. 2015, QuickScorer, but with rows side by side instead
of leaves). It takes numpy alone, which gives up the interpreter's lock meanwhile, so that
threads share the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Leaves of a tree at most: their numbers are held in a byte.
MOST_LEAVES = 256
#: Rows that are asked at once, a multiple of 64: fewer, and calls cost more than their work; more,
#: and their bits leave the processor's cache.
_ROWS = 32_768
#: Trees that are walked at once, and those that share their conditions.
_TREES, _SHARING = 8, 128
#: Thresholds that a column is compared with at once.
_THRESHOLDS = 16

_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]
_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Trees:
    """Trees, node after node; each node's children come after it.

    A row goes left where its value of column `feature` is at most `threshold`, and where the
    value is NaN and `missing_left`. `left` and `right` are places of nodes, both 0 at a leaf,
    which has a `value`. `roots` has where each tree begins, `outputs` which sum its leaf's value
    is added to, and `base` what each sum begins with.
    """

    feature: NDArray[np.uint16]  # [nodes]
    threshold: _Floats  # [nodes]
    missing_left: NDArray[np.bool_]  # [nodes]
    left: NDArray[np.int32]  # [nodes]
    right: NDArray[np.int32]  # [nodes]
    value: _Floats  # [nodes]
    roots: NDArray[np.int32]  # [trees]
    outputs: NDArray[np.int32]  # [trees]
    base: _Floats  # [outputs]

    def __post_init__(self) -> None:
        """Raises ValueError for arrays that are no such trees."""
        nodes = len(self.feature)
        of_nodes = (self.threshold, self.missing_left, self.left, self.right, self.value)
        if any(array.shape != (nodes,) for array in of_nodes):
            raise ValueError(f"arrays of other lengths than of {nodes} nodes")
        if not np.isfinite(self.value).all() or not np.isfinite(self.base).all():
            raise ValueError("values of leaves that are not finite")
        if np.isnan(self.threshold).any():
            raise ValueError("thresholds that are NaN")
        if self.outputs.shape != self.roots.shape or not _within(self.outputs, len(self.base)):
            raise ValueError(f"trees of other outputs than {len(self.base)}")
        starts = np.append(self.roots, nodes).astype(np.int64)
        if starts[0] != 0 or (np.diff(starts) <= 0).any():
            raise ValueError("trees that do not begin one after another")
        tree = np.repeat(np.arange(len(self.roots)), np.diff(starts))
        inner = np.flatnonzero(self.left)
        children = np.concatenate([self.left[inner], self.right[inner]]).astype(np.int64)
        parents = np.concatenate([inner, inner])
        if not (children > parents).all() or not _within(children, nodes):
            raise ValueError("nodes whose children do not come after them")
        # Each node but the roots is the child of one, so that a tree is a tree.
        born = np.bincount(children, minlength=nodes)
        expected = np.ones(nodes, dtype=np.int64)
        expected[self.roots] = 0
        if (born != expected).any() or (tree[children] != tree[parents]).any():
            raise ValueError("nodes that belong to no tree, or to several")
        if np.bincount(tree[self.left == 0]).max() > MOST_LEAVES:
            raise ValueError(f"trees of more than {MOST_LEAVES} leaves")

    @classmethod
    def learned(cls, models: Sequence[Sequence[Any]]) -> Trees:
        """For each output the mean of histogram gradient boosting regressors of scikit-learn
        whose columns are numbers. What they tell differs only by rounding to single precision.
        """
        nodes, roots, outputs, base, at = [], [], [], [], 0
        for output, bag in enumerate(models):
            base.append(sum(float(model._baseline_prediction[0, 0]) for model in bag) / len(bag))
            for model in bag:
                for (tree,) in model._predictors:
                    nodes.append(_nodes(tree.nodes, at, len(bag)))
                    roots.append(at)
                    outputs.append(output)
                    at += len(tree.nodes)
        arrays = {name: np.concatenate([part[name] for part in nodes]) for name in nodes[0]}
        arrays["roots"] = np.array(roots, dtype=np.int32)
        arrays["outputs"] = np.array(outputs, dtype=np.int32)
        return cls(**arrays, base=np.array(base, dtype=np.float32))

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Trees:
        """What `arrays` told. Raises KeyError or ValueError where they are something else."""
        found = {field.name: arrays[field.name] for field in fields(cls)}
        for name, kind in _KINDS.items():
            if found[name].dtype != kind or found[name].ndim != 1:
                raise ValueError(f"{name} is no list of {np.dtype(kind).name}")
        return cls(**found)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The trees as arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __call__(self, columns: _Floats) -> _Floats:
        """The sums [outputs, rows] for `columns` [columns, rows]."""
        rows = columns.shape[1]
        out = np.repeat(self.base[:, None], rows, axis=1)
        if not rows:
            return out
        parts = -(-rows // _ROWS)
        size = -(-rows // parts)
        words = -(-size // 64)
        desk = _Desk.of(self._batches, words)
        part = np.zeros((len(columns), 64 * words), dtype=np.float32)
        for at in range(0, rows, size):
            here = columns[:, at : at + size]
            part[:, : here.shape[1]] = here
            sums = np.repeat(self.base[:, None], 64 * words, axis=1)
            for batch in self._batches:
                batch.add(part, desk, sums)
            out[:, at : at + size] = sums[:, : here.shape[1]]
        return out

    @cached_property
    def _batches(self) -> tuple[_Batch, ...]:
        ends = [*range(0, len(self.roots), _SHARING), len(self.roots)]
        return tuple(_Batch.of(self, first, last) for first, last in pairwise(ends))


_KINDS = {
    "feature": np.uint16,
    "threshold": np.float32,
    "missing_left": np.bool_,
    "left": np.int32,
    "right": np.int32,
    "value": np.float32,
    "roots": np.int32,
    "outputs": np.int32,
    "base": np.float32,
}


@dataclass(frozen=True, slots=True)
class _Question:
    """Conditions [first, last) of a batch: of which column, and whether those are meant whose
    values are above the thresholds, or those whose are not. NaN is neither."""

    column: int
    above: bool
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class _Level:
    """Nodes of one depth with children: the condition of each, and the place of its bits."""

    conditions: _Ints
    places: _Ints


@dataclass(frozen=True, slots=True)
class _Group:
    """Trees that are walked at once, each level after the one before. At place 0 no bit is set.
    After a level's own bits, those of its children are placed: of all that rows go on to where
    the condition holds, then of all others. `cover` has places whose OR, from each of `starts`
    on, is one bit of the leaf's number: [trees, bits]."""

    levels: tuple[_Level, ...]
    cover: _Ints
    starts: _Ints
    bits: int
    places: int
    tables: _Floats  # [trees, 2 ** bits]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Trees that share their conditions."""

    thresholds: _Floats
    questions: tuple[_Question, ...]
    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, trees: Trees, first: int, last: int) -> _Batch:
        """Trees from `first` up to `last`."""
        starts = np.append(trees.roots, len(trees.feature)).astype(np.int64)
        nodes = slice(starts[first], starts[last])
        inner = trees.left[nodes] > 0
        kinds = np.zeros(
            inner.sum(), dtype=[("column", np.int64), ("above", bool), ("threshold", np.float32)]
        )
        kinds["column"] = trees.feature[nodes][inner]
        # NaN meets no condition: so one is asked that NaN shall not meet.
        kinds["above"] = trees.missing_left[nodes][inner]
        kinds["threshold"] = trees.threshold[nodes][inner]
        asked, which = np.unique(kinds, return_inverse=True)
        conditions = np.full(len(inner), -1)
        conditions[inner] = which
        groups = []
        for at in range(first, last, _TREES):
            own = slice(starts[at], starts[min(at + _TREES, last)])
            shared = slice(own.start - nodes.start, own.stop - nodes.start)
            roots = slice(at, min(at + _TREES, last))
            groups.append(_group(trees, own, roots, conditions[shared]))
        return cls(asked["threshold"].copy(), tuple(_questions(asked)), tuple(groups))

    def add(self, columns: _Floats, desk: _Desk, sums: _Floats) -> None:
        """Add the values of the leaves to `sums` [outputs, rows]."""
        conditions = desk.conditions[: len(self.thresholds)]
        for question in self.questions:
            self._ask(question, columns[question.column], desk, conditions)
        for group in self.groups:
            _walk(group, conditions, desk)
            _look_up(group, desk, sums)

    def _ask(self, question: _Question, values: _Floats, desk: _Desk, conditions: _Words) -> None:
        thresholds = self.thresholds[question.first : question.last, None]
        met = desk.met[: len(thresholds)]
        (np.greater if question.above else np.less_equal)(values, thresholds, out=met)
        packed = np.packbits(met.reshape(-1)).view(np.uint64)
        conditions[question.first : question.last] = packed.reshape(len(thresholds), -1)


@dataclass(frozen=True, slots=True)
class _Desk:
    """Room to work in, used again and again: what is new costs more than what is done in it."""

    conditions: _Words  # [conditions, words]
    places: _Words  # [places, words]
    some: tuple[_Words, _Words]  # [nodes of a level, words] each
    cover: _Words  # [places, words]
    numbers: _Words  # [trees * bits, words]
    met: NDArray[np.bool_]  # [thresholds, rows]
    values: _Floats  # [rows]

    @classmethod
    def of(cls, batches: Sequence[_Batch], words: int) -> _Desk:
        """Room for parts of 64 * `words` rows."""
        groups = [group for batch in batches for group in batch.groups]
        levels = [len(level.places) for group in groups for level in group.levels]

        def room(rows: int) -> _Words:
            return np.zeros((rows, words), dtype=np.uint64)

        return cls(
            room(max(len(batch.thresholds) for batch in batches)),
            room(max(group.places for group in groups)),
            (room(max(levels, default=0)), room(max(levels, default=0))),
            room(max(len(group.cover) for group in groups)),
            room(max(len(group.starts) for group in groups)),
            np.zeros((_THRESHOLDS, 64 * words), dtype=np.bool_),
            np.zeros(64 * words, dtype=np.float32),
        )


def _walk(group: _Group, conditions: _Words, desk: _Desk) -> None:
    """Find, for each node, the rows that come to it."""
    places, end = desk.places, len(group.outputs) + 1
    # All rows come to the roots.
    places[1:end] = np.iinfo(np.uint64).max
    for level in group.levels:
        count = len(level.places)
        here, holds = desk.some[0][:count], desk.some[1][:count]
        yes, no = places[end : end + count], places[end + count : end + 2 * count]
        # "clip" is "the places are right": it spares numpy a buffer.
        np.take(places, level.places, axis=0, out=here, mode="clip")
        np.take(conditions, level.conditions, axis=0, out=holds, mode="clip")
        np.bitwise_and(here, holds, out=yes)
        np.bitwise_xor(here, yes, out=no)
        end += 2 * count


def _look_up(group: _Group, desk: _Desk, sums: _Floats) -> None:
    """Read the numbers of leaves from their bits, and add their values."""
    trees = len(group.outputs)
    cover = desk.cover[: len(group.cover)]
    np.take(desk.places, group.cover, axis=0, out=cover, mode="clip")
    numbers = desk.numbers[: trees * group.bits]
    np.bitwise_or.reduceat(cover, group.starts, axis=0, out=numbers)
    for tree, output in enumerate(group.outputs):
        own = numbers[tree * group.bits : (tree + 1) * group.bits]
        bits = np.unpackbits(own.view(np.uint8).reshape(-1)).reshape(group.bits, -1)
        leaf = bits[-1]
        for bit in bits[-2::-1]:
            np.add(leaf, leaf, out=leaf)
            np.bitwise_or(leaf, bit, out=leaf)
        np.take(group.tables[tree], leaf, out=desk.values, mode="clip")
        np.add(sums[output], desk.values, out=sums[output])


def _nodes(nodes: NDArray[Any], at: int, bag: int) -> dict[str, NDArray[Any]]:
    """The arrays over nodes for a tree of scikit-learn whose root is at `at`, one of the trees of
    `bag` models."""
    if nodes["is_categorical"].any():
        raise ValueError("trees that split by categories are not known here")
    leaf = nodes["is_leaf"] == 1
    # The largest single below: what is at most the one is at most the other, if it is a single.
    with np.errstate(over="ignore"):
        threshold = nodes["num_threshold"].astype(np.float32)
    lower = np.nextafter(threshold, np.float32(-np.inf))
    threshold = np.where(threshold > nodes["num_threshold"], lower, threshold)
    return {
        "feature": np.where(leaf, 0, nodes["feature_idx"]).astype(np.uint16),
        "threshold": np.where(leaf, np.float32(0), threshold),
        "missing_left": (nodes["missing_go_to_left"] == 1) & ~leaf,
        "left": np.where(leaf, 0, nodes["left"].astype(np.int64) + at).astype(np.int32),
        "right": np.where(leaf, 0, nodes["right"].astype(np.int64) + at).astype(np.int32),
        "value": np.where(leaf, nodes["value"] / bag, 0.0).astype(np.float32),
    }


def _questions(asked: NDArray[Any]) -> Iterator[_Question]:
    """One after another for `asked` conditions, which are sorted."""
    if not len(asked):
        return
    other = (np.diff(asked["column"]) != 0) | (asked["above"][1:] != asked["above"][:-1])
    ends = [0, *(np.flatnonzero(other) + 1).tolist(), len(asked)]
    for first, last in pairwise(ends):
        for at in range(first, last, _THRESHOLDS):
            column, above = int(asked["column"][at]), bool(asked["above"][at])
            yield _Question(column, above, at, min(at + _THRESHOLDS, last))


def _group(trees: Trees, nodes: slice, which: slice, conditions: _Ints) -> _Group:
    """The trees `which`, whose nodes are `nodes` and have `conditions` (-1 at leaves)."""
    left = trees.left[nodes].astype(np.int64) - nodes.start
    right = trees.right[nodes].astype(np.int64) - nodes.start
    inner = conditions >= 0
    holds = np.where(trees.missing_left[nodes], right, left)
    fails = np.where(trees.missing_left[nodes], left, right)
    roots = trees.roots[which].astype(np.int64) - nodes.start
    count = len(roots)
    place = np.zeros(len(left), dtype=np.int64)
    place[roots] = np.arange(1, count + 1)
    levels, order, end = [], [roots], count + 1
    while len(here := order[-1][inner[order[-1]]]):
        levels.append(_Level(conditions[here], place[here]))
        below = np.concatenate([holds[here], fails[here]])
        place[below] = end + np.arange(len(below))
        end += len(below)
        order.append(below)
    first, leaves = _numbers(order, inner, left, right)
    bits = max(1, int(leaves[roots].max() - 1).bit_length())
    tree = np.searchsorted(roots, np.arange(len(left)), side="right") - 1
    tables = np.zeros((count, 2**bits), dtype=np.float32)
    tables[tree[~inner], first[~inner]] = trees.value[nodes][~inner]
    # A node of whose leaves all have the bit stands for them, unless its parent does.
    cover, owner = [np.zeros(count * bits, dtype=np.int64)], [np.arange(count * bits)]
    parent = np.zeros(len(left), dtype=np.int64)
    parent[left[inner]] = parent[right[inner]] = np.flatnonzero(inner)
    last = first + leaves - 1
    for bit in range(bits):
        all_have = ((first >> bit) & 1 == 1) & (first >> bit == last >> bit)
        chosen = np.flatnonzero(all_have & ~all_have[parent])
        cover.append(place[chosen])
        owner.append(tree[chosen] * bits + bit)
    sorted_by = np.argsort(np.concatenate(owner), kind="stable")
    starts = np.searchsorted(np.concatenate(owner)[sorted_by], np.arange(count * bits))
    outputs = tuple(trees.outputs[which].tolist())
    places = np.concatenate(cover)[sorted_by]
    return _Group(tuple(levels), places, starts, bits, end, tables, outputs)


def _numbers(
    order: Sequence[_Ints], inner: NDArray[np.bool_], left: _Ints, right: _Ints
) -> tuple[_Ints, _Ints]:
    """Leaves are numbered from left to right: the first number below each node, and how many
    there are. `order` has the nodes by depth."""
    first = np.zeros(len(inner), dtype=np.int64)
    leaves = np.ones(len(inner), dtype=np.int64)
    for nodes in reversed(order):
        here = nodes[inner[nodes]]
        leaves[here] = leaves[left[here]] + leaves[right[here]]
    for nodes in order:
        here = nodes[inner[nodes]]
        first[left[here]] = first[here]
        first[right[here]] = first[here] + leaves[left[here]]
    return first, leaves


def _within(indices: NDArray[np.integer[Any]], count: int) -> bool:
    return bool(((indices >= 0) & (indices < count)).all())
