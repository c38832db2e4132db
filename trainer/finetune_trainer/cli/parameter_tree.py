"""Who owns what, as a tree: the model's parameters folded until a person can read them, and nothing is hidden.

A subtree with one owner is one line, layers that look alike are one line, and only what is split between owners is
opened. Where nobody has decided yet, more is opened, so that one sees what there is to decide about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.text import Text
from rich.tree import Tree

from finetune_trainer.cli.plan_table import humanize, plural
from finetune_trainer.planning.modules import Parameter

LINES = 60
"""Longer trees are no longer read; what is split below that says by how much."""
OVERVIEW = 30
"""So many lines show what a model is made of."""
DEEPEST = 20
WIDEST = 48
"""Longer names push the columns out of line instead of all others to the right."""


@dataclass(frozen=True)
class Leaf:
    """A parameter and the modules that match it: one, unless nobody does, or there is a mistake."""

    parameter: Parameter
    shape: tuple[int, ...]
    owners: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of, and whose it is.

    Args:
        kind: the model's class.
        leaves: its parameters, in its own order.
    """

    kind: str
    leaves: tuple[Leaf, ...]

    @property
    def parameters(self) -> list[Parameter]:
        return [leaf.parameter for leaf in self.leaves]


@dataclass(frozen=True)
class Node:
    """A part of the model, or several that look alike, which share one line.

    Args:
        label: the end of their names, e.g. `encoder.layer.{0-11}`.
        copies: how many there are.
        leaves: all their parameters.
        children: their parts, each for all copies.
    """

    label: str
    copies: int
    leaves: tuple[Leaf, ...]
    children: tuple[Node, ...]

    @cached_property
    def owners(self) -> Counter[tuple[str, ...]]:
        return Counter(leaf.owners for leaf in self.leaves)

    @property
    def numel(self) -> int:
        return sum(leaf.parameter.numel for leaf in self.leaves)

    @property
    def shared(self) -> list[tuple[str, ...]]:
        return [leaf.parameter.names for leaf in self.leaves if len(leaf.parameter.names) > 1]

    @property
    def title(self) -> str:
        return self.label + (f" ×{self.copies}" if self.copies > 1 else "")


Branch = tuple[tuple[str, ...], tuple[Leaf, ...]]
"""What is left of a name, and the parameters of all copies that end like that."""
Name = Callable[[tuple[str, ...]], Text]


def grow(anatomy: Anatomy) -> Node:
    """The whole model as nodes, layers that look alike merged."""
    branches = [(tuple(leaf.parameter.name.split(".")), (leaf,)) for leaf in anatomy.leaves]
    return Node(anatomy.kind, 1, anatomy.leaves, tuple(_children(branches)))


def _children(branches: Sequence[Branch]) -> Iterator[Node]:
    by_part: dict[str, list[Branch]] = {}
    for (part, *rest), leaves in branches:
        by_part.setdefault(part, []).append((tuple(rest), leaves))
    for twins in _twins(by_part):
        yield _node(numbers(twins), len(twins), _stacked([by_part[part] for part in twins]))


def _node(label: str, copies: int, branches: Sequence[Branch]) -> Node:
    leaves = tuple(leaf for _, several in branches for leaf in several)
    if not branches[0][0]:
        return Node(label, copies, leaves, ())
    children = tuple(_children(branches))
    if len(children) > 1:
        return Node(label, copies, leaves, children)
    only = children[0]
    return Node(f"{label}.{only.label}", copies * only.copies, leaves, only.children)


def _twins(by_part: Mapping[str, Sequence[Branch]]) -> list[list[str]]:
    """Parts grouped: numbered ones that hold the same, and each other part for itself."""
    groups: dict[object, list[str]] = {}
    for part, branches in by_part.items():
        groups.setdefault(_looks(branches) if part.isdigit() else part, []).append(part)
    return list(groups.values())


def _looks(branches: Sequence[Branch]) -> object:
    return tuple(
        (rest, tuple((leaf.shape, leaf.owners, len(leaf.parameter.names)) for leaf in leaves))
        for rest, leaves in branches
    )


def _stacked(copies: Sequence[Sequence[Branch]]) -> list[Branch]:
    """Branches of parts that look alike, laid on each other."""
    return [(same[0][0], tuple(leaf for _, leaves in same for leaf in leaves)) for same in zip(*copies, strict=True)]


def numbers(parts: Sequence[str]) -> str:
    """Numbered parts in short.

    >>> numbers(["0", "1", "2", "5"]), numbers(["7"]), numbers(["bias"])
    ('{0-2,5}', '7', 'bias')
    """
    if len(parts) == 1:
        return parts[0]
    runs: list[list[int]] = []
    for number in sorted(map(int, parts)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs) + "}"


# What is shown of it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folding:
    """How deep a tree is opened.

    Args:
        split: to this depth where several own parts of it.
        whole: to this depth where one owns all of it.
    """

    split: int
    whole: int = 1

    def shows(self, node: Node, depth: int) -> tuple[Node, ...]:
        return node.children if depth < (self.split if len(node.owners) > 1 else self.whole) else ()

    def lines(self, node: Node, depth: int = 0) -> int:
        return 1 + sum(self.lines(child, depth + 1) for child in self.shows(node, depth))


def fold(root: Node, *, overview: bool) -> Folding:
    """The deepest opening that can still be read. An overview opens what one module owns as well."""
    split = _deepest(root, LINES, Folding)
    if not overview:
        return split
    return _deepest(root, OVERVIEW, lambda depth: Folding(max(depth, split.split), depth))


def _deepest(root: Node, lines: int, folding: Callable[[int], Folding]) -> Folding:
    fitting = (depth for depth in range(DEEPEST, 1, -1) if folding(depth).lines(root) <= lines)
    return folding(next(fitting, 1))


def ownership_tree(anatomy: Anatomy, name: Name, *, overview: bool = False) -> Tree:
    """The model with each part's tensors, numel and owner.

    Args:
        name: how the owners of a parameter are called, in their colour.
        overview: open what one module owns as well, to show what is there.
    """
    root = grow(anatomy)
    folding = fold(root, overview=overview)
    size = f"  {plural(len(root.leaves), 'tensor')}, {plural(root.numel, 'parameter')}"
    tree = Tree(Text.assemble((root.label, "bold"), (size, "dim")), guide_style="dim", style="default")
    _Drawing(folding, name, min(WIDEST, max(_widths(root, folding)))).add_parts(tree, root, 1)
    return tree


@dataclass(frozen=True)
class _Drawing:
    folding: Folding
    name: Name
    width: int

    def add_parts(self, tree: Tree, node: Node, depth: int) -> None:
        for child in self.folding.shows(node, depth - 1):
            line = _line(child, self.width - 4 * depth) + self._whose(child, depth)
            self.add_parts(tree.add(line), child, depth + 1)

    def _whose(self, node: Node, depth: int) -> Text:
        """Its owner; what is opened says no more than its parts do."""
        opened = bool(self.folding.shows(node, depth))
        if len(node.owners) == 1:
            owner = self.name(next(iter(node.owners)))
            return owner if opened else owner + _shared(node)
        if opened:
            return Text()
        parts = [self.name(owners) + Text(f" {count}", "dim") for owners, count in node.owners.items()]
        return Text("split: ") + Text(", ").join(parts) + _shared(node)


def _widths(node: Node, folding: Folding, depth: int = 0) -> Iterator[int]:
    yield 4 * depth + len(node.title)
    for child in folding.shows(node, depth):
        yield from _widths(child, folding, depth + 1)


def _line(node: Node, width: int) -> Text:
    counts = f"{len(node.leaves):>6,}{humanize(node.numel):>7}  "
    return Text.assemble(f"{node.title:<{max(width, 0)}}", (counts, "dim"))


def _shared(node: Node) -> Text:
    """All names of weights that have several: its other names at a weight, the whole equation elsewhere."""
    if not node.children and len(node.leaves) == 1:
        return Text("".join(f" = {other}" for other in node.leaves[0].parameter.names[1:]), "italic")
    return Text("".join(f"; shares {' = '.join(names)}" for names in _some(node.shared)), "italic")


def _some(names: Sequence[tuple[str, ...]]) -> Iterable[tuple[str, ...]]:
    return names if len(names) <= 3 else [*names[:2], ("…", f"{len(names) - 2} more")]
