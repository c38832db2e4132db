"""The model's parameters as a tree with their owners, collapsed until it is short enough to read.

A subtree with one owner is one line, identical layers are one line, and only subtrees that several modules own are
expanded. Where modules are still to be decided, more is expanded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.text import Text
from rich.tree import Tree

from finetune_trainer.formatting import format_count, pluralize
from finetune_trainer.planning.patterns import brace_numbers
from finetune_trainer.planning.preview import MatchedParameter, ModelParameters

MAX_LINES = 60
"""Upper bound on the lines of a tree; subtrees that are still split then show how many tensors each module owns."""
OVERVIEW_LINES = 30
"""Upper bound on the lines of an overview."""
MAX_DEPTH = 20
MAX_NAME_WIDTH = 48
"""Longer names shift the columns of their own line instead of those of all lines."""


@dataclass(frozen=True)
class TreeNode:
    """A part of the model, or several identical parts that share one line.

    Args:
        label: their names relative to the parent, e.g. `encoder.layer.{0..11}`.
        copies: number of identical parts.
        parameters: the parameters of all of them.
        children: their parts, each for all copies.
    """

    label: str
    copies: int
    parameters: tuple[MatchedParameter, ...]
    children: tuple[TreeNode, ...]

    @cached_property
    def owners(self) -> Counter[tuple[str, ...]]:
        """Number of parameters by the modules that match them."""
        return Counter(parameter.modules for parameter in self.parameters)

    @property
    def numel(self) -> int:
        return sum(parameter.info.numel for parameter in self.parameters)

    @property
    def tied(self) -> list[tuple[str, ...]]:
        """All names of each tied weight."""
        return [parameter.info.names for parameter in self.parameters if len(parameter.info.names) > 1]

    @property
    def title(self) -> str:
        return self.label + (f" ×{self.copies}" if self.copies > 1 else "")


Entry = tuple[tuple[str, ...], tuple[MatchedParameter, ...]]
"""The rest of a parameter's name, and the parameters with this name in all identical parts."""
OwnerLabel = Callable[[tuple[str, ...]], Text]


def build_tree(model: ModelParameters) -> TreeNode:
    """The whole model, with identical layers merged."""
    entries = [(tuple(parameter.info.name.split(".")), (parameter,)) for parameter in model.parameters]
    return TreeNode(model.model_class, 1, model.parameters, tuple(_children(entries)))


def _children(entries: Sequence[Entry]) -> Iterator[TreeNode]:
    by_part: dict[str, list[Entry]] = {}
    for (part, *rest), parameters in entries:
        by_part.setdefault(part, []).append((tuple(rest), parameters))
    for parts in _identical_siblings(by_part):
        label = parts[0] if len(parts) == 1 else brace_numbers([int(part) for part in parts])
        yield _node(label, len(parts), _merge([by_part[part] for part in parts]))


def _node(label: str, copies: int, entries: Sequence[Entry]) -> TreeNode:
    parameters = tuple(parameter for _, found in entries for parameter in found)
    if not entries[0][0]:
        return TreeNode(label, copies, parameters, ())
    children = tuple(_children(entries))
    if len(children) > 1:
        return TreeNode(label, copies, parameters, children)
    only = children[0]
    return TreeNode(f"{label}.{only.label}", copies * only.copies, parameters, only.children)


def _identical_siblings(by_part: Mapping[str, Sequence[Entry]]) -> list[list[str]]:
    """Groups of parts: numbered ones with the same content together, any other part on its own."""
    groups: dict[object, list[str]] = {}
    for part, entries in by_part.items():
        groups.setdefault(_content(entries) if part.isdigit() else part, []).append(part)
    return list(groups.values())


def _content(entries: Sequence[Entry]) -> object:
    """What has to be equal in identical parts."""
    return tuple(
        (rest, tuple((it.info.shape, it.modules, len(it.info.names)) for it in parameters))
        for rest, parameters in entries
    )


def _merge(copies: Sequence[Sequence[Entry]]) -> list[Entry]:
    """The entries of identical parts as those of one part."""
    return [(same[0][0], tuple(it for _, found in same for it in found)) for same in zip(*copies, strict=True)]


# Expansion -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expansion:
    """The depth to which a tree is expanded.

    Args:
        shared_depth: depth for subtrees that several modules own.
        single_owner_depth: depth for subtrees that one module owns.
    """

    shared_depth: int
    single_owner_depth: int = 1

    def children(self, node: TreeNode, depth: int) -> tuple[TreeNode, ...]:
        """The visible children of a node."""
        max_depth = self.shared_depth if len(node.owners) > 1 else self.single_owner_depth
        return node.children if depth < max_depth else ()

    def count_lines(self, node: TreeNode, depth: int = 0) -> int:
        return 1 + sum(self.count_lines(child, depth + 1) for child in self.children(node, depth))


def choose_expansion(root: TreeNode, *, overview: bool) -> Expansion:
    """The deepest expansion within the limits; an overview expands subtrees that one module owns, too."""
    deepest = _deepest(root, MAX_LINES, Expansion)
    if not overview:
        return deepest
    return _deepest(root, OVERVIEW_LINES, lambda depth: Expansion(max(depth, deepest.shared_depth), depth))


def _deepest(root: TreeNode, max_lines: int, expansion: Callable[[int], Expansion]) -> Expansion:
    depths = range(MAX_DEPTH, 1, -1)
    return expansion(next((depth for depth in depths if expansion(depth).count_lines(root) <= max_lines), 1))


# Rendering -------------------------------------------------------------------------------------------------------


def render_tree(model: ModelParameters, owner_label: OwnerLabel, *, overview: bool = False) -> Tree:
    """The model with tensors, elements and owner of each part.

    Args:
        owner_label: how the modules that match a parameter are shown.
        overview: expand subtrees that one module owns, too.
    """
    root = build_tree(model)
    expansion = choose_expansion(root, overview=overview)
    size = f"  {pluralize(len(root.parameters), 'tensor')}, {pluralize(root.numel, 'parameter')}"
    tree = Tree(Text.assemble((root.label, "bold"), (size, "dim")), guide_style="dim", style="default")
    width = min(MAX_NAME_WIDTH, max(_widths(root, expansion)))
    _TreeRenderer(expansion, owner_label, width).add_children(tree, root, 1)
    return tree


@dataclass(frozen=True)
class _TreeRenderer:
    expansion: Expansion
    owner_label: OwnerLabel
    width: int

    def add_children(self, tree: Tree, node: TreeNode, depth: int) -> None:
        for child in self.expansion.children(node, depth - 1):
            line = _columns(child, self.width - 4 * depth) + self._owners(child, depth)
            self.add_children(tree.add(line), child, depth + 1)

    def _owners(self, node: TreeNode, depth: int) -> Text:
        """The node's owners; those of an expanded node with several are on the lines of its children."""
        is_expanded = bool(self.expansion.children(node, depth))
        if len(node.owners) == 1:
            owner = self.owner_label(next(iter(node.owners)))
            return owner if is_expanded else owner + _tied_names(node)
        if is_expanded:
            return Text()
        parts = [self.owner_label(modules) + Text(f" {count}", "dim") for modules, count in node.owners.items()]
        return Text("split: ") + Text(", ").join(parts) + _tied_names(node)


def _widths(node: TreeNode, expansion: Expansion, depth: int = 0) -> Iterator[int]:
    yield 4 * depth + len(node.title)
    for child in expansion.children(node, depth):
        yield from _widths(child, expansion, depth + 1)


def _columns(node: TreeNode, width: int) -> Text:
    counts = f"{len(node.parameters):>6,}{format_count(node.numel):>7}  "
    return Text.assemble(f"{node.title:<{max(width, 0)}}", (counts, "dim"))


def _tied_names(node: TreeNode) -> Text:
    """The other names of a tied weight on its own line; the whole equation on the line of a subtree."""
    if not node.children and len(node.parameters) == 1:
        return Text("".join(f" = {other}" for other in node.parameters[0].info.names[1:]), "italic")
    return Text("".join(f"; tied: {' = '.join(names)}" for names in _first(node.tied)), "italic")


def _first(names: Sequence[tuple[str, ...]]) -> Iterable[tuple[str, ...]]:
    return names if len(names) <= 3 else [*names[:2], ("…", f"{len(names) - 2} more")]
