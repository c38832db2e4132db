"""The tree of owners: short enough to read whatever the model is, and it never loses a tensor."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from finetune_trainer.cli.console import rendered
from finetune_trainer.cli.parameter_tree import LINES, OVERVIEW, Anatomy, Leaf, fold, grow, numbers, ownership_tree
from finetune_trainer.planning.modules import Parameter

Owners = tuple[str, ...]


def leaf(name: str | Owners, owners: Owners = ("all",), shape: tuple[int, ...] = (2, 3)) -> Leaf:
    names = (name,) if isinstance(name, str) else name
    elements = 1
    for size in shape:
        elements *= size
    return Leaf(Parameter(names, elements, len(shape)), shape, owners)


def name(owners: Owners) -> Text:
    return Text("+".join(owners) or "nobody")


def shown(leaves: Sequence[Leaf], *, overview: bool = False) -> list[str]:
    lines = rendered(ownership_tree(Anatomy("Model", tuple(leaves)), name, overview=overview), 100).splitlines()
    return [" ".join(line.strip("│├└─ ").split()) for line in lines]


def layers(count: int, owner: Owners = ("all",), first: int = 0) -> list[Leaf]:
    return [
        leaf(f"enc.layer.{number}.{part}", owner)
        for number in range(first, first + count)
        for part in ("attn.weight", "attn.bias", "mlp.weight")
    ]


def test_a_subtree_of_one_owner_is_one_line() -> None:
    leaves = [*layers(2, ("body",)), leaf("head.weight", ("head",)), leaf("head.bias", ("head",))]
    assert shown(leaves) == [
        "Model 8 tensors, 48 parameters",
        "enc.layer.{0-1} ×2 6 36 body",
        "head 2 12 head",
    ]


def test_layers_of_different_owners_are_told_apart() -> None:
    assert shown([*layers(6, ("low",)), *layers(6, ("high",), first=6), leaf("head", ("high",))])[1:] == [
        "enc.layer 36 216",
        "{0-5} ×6 18 108 low",
        "{6-11} ×6 18 108 high",
        "head 1 6 high",
    ]


def test_what_is_split_within_layers_that_look_alike_is_opened_once() -> None:
    leaves = [leaf(f"layer.{number}.{part}", (part,)) for number in range(12) for part in ("weight", "bias")]
    assert shown(leaves)[1:] == ["layer.{0-11} ×12 24 144", "weight 12 72 weight", "bias 12 72 bias"]


def test_a_layer_of_another_shape_stands_apart() -> None:
    leaves = [leaf(f"layer.{number}.w", shape=(9,) if number == 2 else (2, 3)) for number in range(5)]
    assert shown(leaves, overview=True)[1:] == ["layer 5 33 all", "{0-1,3-4}.w ×4 4 24 all", "2.w 1 9 all"]


def test_a_shared_weight_is_told_with_all_its_names_wherever_it_is_folded_away() -> None:
    tied = ("model.embed.weight", "lm_head.weight")
    open_leaves = [leaf(tied, ("embeddings",)), leaf("model.norm.weight", ("body",))]
    assert "embed.weight 1 6 embeddings = lm_head.weight" in shown(open_leaves)
    folded = [leaf(tied), leaf("model.norm.weight"), leaf("extra")]
    assert "model 2 12 all; shares model.embed.weight = lm_head.weight" in shown(folded)


def test_parameters_of_nobody_and_of_two_are_opened() -> None:
    leaves = [leaf("a.x", ("one",)), leaf("a.y", ()), leaf("b.x", ("one", "two")), leaf("b.y", ("two",))]
    assert shown(leaves)[1:] == ["a 2 12", "x 1 6 one", "y 1 6 nobody", "b 2 12", "x 1 6 one+two", "y 1 6 two"]


def test_an_overview_opens_what_one_module_owns() -> None:
    leaves = [*layers(4), leaf("enc.norm"), leaf("head")]
    assert shown(leaves)[1:] == ["enc 13 78 all", "head 1 6 all"]
    opened = shown(leaves, overview=True)
    assert "layer.{0-3} ×4 12 72 all" in opened
    assert "attn 8 48 all" in opened


@pytest.mark.parametrize("overview", [False, True])
def test_a_model_of_a_thousand_tensors_stays_readable(overview: bool) -> None:
    alike = [leaf(f"tower.layer.{n}.{part}.{end}", (end,)) for n in range(50) for part in "abcdefgh" for end in "wb"]
    unlike = [leaf(f"conv.{n}.{part}.{end}", (end,), (n + 1,)) for n in range(50) for part in "xy" for end in "wb"]
    lines = shown([*alike, *unlike], overview=overview)
    assert len(lines) <= LINES
    assert "conv 200 5.1K split: w 100, b 100" in lines


paths = st.lists(st.sampled_from(["a", "b", "0", "1", "2"]), min_size=1, max_size=4).map(".".join)


owned_paths = st.tuples(paths, st.sampled_from([("p",), ("q",), (), ("p", "q")]))


@given(st.lists(owned_paths, unique_by=lambda it: it[0], min_size=1))
def test_no_tensor_is_lost_and_the_lines_add_up(found: list[tuple[str, Owners]]) -> None:
    prefixes = {path.rsplit(".", cut)[0] for path, _ in found for cut in range(1, 5) if "." in path}
    leaves = [leaf(path, owners) for path, owners in found if path not in prefixes]
    if not leaves:
        return
    root = grow(Anatomy("Model", tuple(leaves)))
    for overview in (False, True):
        folding = fold(root, overview=overview)
        pending, shown_leaves = [(root, 0)], 0
        while pending:
            node, depth = pending.pop()
            children = folding.shows(node, depth)
            assert not children or sum(len(child.leaves) for child in children) == len(node.leaves)
            pending += [(child, depth + 1) for child in children]
            shown_leaves += 0 if children else len(node.leaves)
        assert shown_leaves == len(leaves)
        assert folding.lines(root) <= max(LINES, OVERVIEW, 1 + len(root.children))


@given(st.sets(st.integers(0, 60), min_size=2))
def test_numbers_in_short_are_the_numbers(found: set[int]) -> None:
    ranges = numbers([str(number) for number in found]).strip("{}").split(",")
    ends = [list(map(int, part.split("-"))) for part in ranges]
    assert {number for first, *last in ends for number in range(first, (last or [first])[0] + 1)} == found
