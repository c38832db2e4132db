"""Differences between two specs: fields by their effect, with old and new values."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from finetune_api.effects import Effect
from finetune_trainer.training.checkpoint.differences import diff_specs, join_changes

SPECS = st.fixed_dictionaries(
    {
        "training": st.fixed_dictionaries({"seed": st.integers(0, 2), "epochs": st.integers(1, 3)}),
        "data": st.fixed_dictionaries({"workers": st.integers(0, 2)}),
        "modules": st.lists(st.fixed_dictionaries({"name": st.sampled_from("ab")}), max_size=2),
    }
)


@given(SPECS, SPECS)
def test_each_difference_has_one_effect_and_is_symmetric(old: dict[str, Any], new: dict[str, Any]) -> None:
    changes = {effect: diff_specs(old, new, effect) for effect in Effect}
    assert bool([change for found in changes.values() for change in found]) == (old != new)
    assert [change.split(":")[0] for change in changes[Effect.POSITION]] == (
        ["training.seed"] if old["training"]["seed"] != new["training"]["seed"] else []
    )
    for effect, found in changes.items():
        back = diff_specs(new, old, effect)
        assert sorted(change.split(":")[0] for change in found) == sorted(change.split(":")[0] for change in back)


def test_values_that_are_not_set() -> None:
    old, new = {"training": {"steps": 10}}, {"training": {"epochs": 2}}
    assert diff_specs(old, new, Effect.RESULT) == ["training.steps: 10 -> not set", "training.epochs: not set -> 2"]


def test_many_changes_are_shortened() -> None:
    changes = [f"field{number}: 1 -> 2" for number in range(11)]
    assert join_changes(changes[:8]) == "; ".join(changes[:8])
    assert join_changes(changes).endswith("field7: 1 -> 2; and 3 more")
