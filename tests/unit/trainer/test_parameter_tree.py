"""The parameter tree is short for any model, and shows every tensor."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from finetune_trainer.cli.console import render_text
from finetune_trainer.cli.parameter_tree import MAX_LINES, OVERVIEW_LINES, build_tree, choose_expansion, render_tree
from finetune_trainer.planning.parameters import ParameterInfo
from finetune_trainer.planning.preview import MatchedParameter, ModelParameters

Owners = tuple[str, ...]


def leaf(name: str | Owners, owners: Owners = ("all",), shape: tuple[int, ...] = (2, 3)) -> MatchedParameter:
    names = (name,) if isinstance(name, str) else name
    return MatchedParameter(ParameterInfo(names, shape), owners)


def owner_label(owners: Owners) -> Text:
    return Text("+".join(owners) or "unmatched")


def render(leaves: Sequence[MatchedParameter], *, overview: bool = False) -> list[str]:
    tree = render_tree(ModelParameters("Model", tuple(leaves)), owner_label, overview=overview)
    lines = render_text(tree, 100).splitlines()
    return [" ".join(line.strip("│├└─ ").split()) for line in lines]


def layers(count: int, owner: Owners = ("all",), first: int = 0) -> list[MatchedParameter]:
    return [
        leaf(f"enc.layer.{number}.{part}", owner)
        for number in range(first, first + count)
        for part in ("attn.weight", "attn.bias", "mlp.weight")
    ]


def test_subtree_with_one_owner_is_one_line() -> None:
    leaves = [*layers(2, ("body",)), leaf("head.weight", ("head",)), leaf("head.bias", ("head",))]
    assert render(leaves) == [
        "Model 8 tensors, 48 parameters",
        "enc.layer.{0,1} ×2 6 36 body",
        "head 2 12 head",
    ]


def test_layers_with_different_owners_are_separate_lines() -> None:
    assert render([*layers(6, ("low",)), *layers(6, ("high",), first=6), leaf("head", ("high",))])[1:] == [
        "enc.layer 36 216",
        "{0..5} ×6 18 108 low",
        "{6..11} ×6 18 108 high",
        "head 1 6 high",
    ]


def test_split_within_identical_layers_is_expanded_once() -> None:
    leaves = [leaf(f"layer.{number}.{part}", (part,)) for number in range(12) for part in ("weight", "bias")]
    assert render(leaves)[1:] == ["layer.{0..11} ×12 24 144", "weight 12 72 weight", "bias 12 72 bias"]


def test_layer_with_another_shape_is_a_separate_line() -> None:
    leaves = [leaf(f"layer.{number}.w", shape=(9,) if number == 2 else (2, 3)) for number in range(5)]
    assert render(leaves, overview=True)[1:] == ["layer 5 33 all", "{0,1,3,4}.w ×4 4 24 all", "2.w 1 9 all"]


def test_tied_weight_shows_all_names_in_expanded_and_collapsed_subtrees() -> None:
    tied = ("model.embed.weight", "lm_head.weight")
    open_leaves = [leaf(tied, ("embeddings",)), leaf("model.norm.weight", ("body",))]
    assert "embed.weight 1 6 embeddings = lm_head.weight" in render(open_leaves)
    folded = [leaf(tied), leaf("model.norm.weight"), leaf("extra")]
    assert "model 2 12 all; tied: model.embed.weight = lm_head.weight" in render(folded)


def test_parameters_with_no_module_or_several_are_expanded() -> None:
    leaves = [leaf("a.x", ("one",)), leaf("a.y", ()), leaf("b.x", ("one", "two")), leaf("b.y", ("two",))]
    assert render(leaves)[1:] == ["a 2 12", "x 1 6 one", "y 1 6 unmatched", "b 2 12", "x 1 6 one+two", "y 1 6 two"]


def test_overview_expands_subtrees_with_one_owner() -> None:
    leaves = [*layers(4), leaf("enc.norm"), leaf("head")]
    assert render(leaves)[1:] == ["enc 13 78 all", "head 1 6 all"]
    opened = render(leaves, overview=True)
    assert "layer.{0..3} ×4 12 72 all" in opened
    assert "attn 8 48 all" in opened


@pytest.mark.parametrize("overview", [False, True])
def test_tree_of_a_thousand_tensors_is_short(overview: bool) -> None:
    alike = [leaf(f"tower.layer.{n}.{part}.{end}", (end,)) for n in range(50) for part in "abcdefgh" for end in "wb"]
    unlike = [leaf(f"conv.{n}.{part}.{end}", (end,), (n + 1,)) for n in range(50) for part in "xy" for end in "wb"]
    lines = render([*alike, *unlike], overview=overview)
    assert len(lines) <= MAX_LINES
    assert "conv 200 5.1K split: w 100, b 100" in lines


paths = st.lists(st.sampled_from(["a", "b", "0", "1", "2"]), min_size=1, max_size=4).map(".".join)


owned_paths = st.tuples(paths, st.sampled_from([("p",), ("q",), (), ("p", "q")]))


@given(st.lists(owned_paths, unique_by=lambda it: it[0], min_size=1))
def test_lines_add_up_to_all_tensors(found: list[tuple[str, Owners]]) -> None:
    prefixes = {path.rsplit(".", cut)[0] for path, _ in found for cut in range(1, 5) if "." in path}
    leaves = [leaf(path, owners) for path, owners in found if path not in prefixes]
    if not leaves:
        return
    root = build_tree(ModelParameters("Model", tuple(leaves)))
    for overview in (False, True):
        expansion = choose_expansion(root, overview=overview)
        pending, visible = [(root, 0)], 0
        while pending:
            node, depth = pending.pop()
            children = expansion.children(node, depth)
            assert not children or sum(len(child.parameters) for child in children) == len(node.parameters)
            pending += [(child, depth + 1) for child in children]
            visible += 0 if children else len(node.parameters)
        assert visible == len(leaves)
        assert expansion.count_lines(root) <= max(MAX_LINES, OVERVIEW_LINES, 1 + len(root.children))
