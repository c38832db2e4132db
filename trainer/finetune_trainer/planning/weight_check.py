"""Checks that a model's weights are those that its config and the task need, before and after they are loaded.

transformers loads whatever has the right name and initializes the rest at random, with a warning in the log. Here a
weight may be new only if it belongs to a head that the task makes anew, and a tensor may remain unused only if it
belongs to another head, a pooler or a part that the model does not have; both are announced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finetune_trainer.compat.hf_transformers import is_optional_tensor, is_optional_weight, tied_weight
from finetune_trainer.errors import UserError
from finetune_trainer.formatting import join_some, pluralize
from finetune_trainer.planning.parameters import group_by_prefix, with_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from finetune_trainer.planning.model_loader import PretrainedSource
    from finetune_trainer.planning.weight_files import TensorHeader, WeightFiles

POOLERS = ("pooler", "head")
"""Parts inside a base model that pool its output, and that it has for some tasks only."""

MASK_WEIGHT = "mask_token"
"""Weight of image encoders that only their pretraining uses."""

OLD_BUFFERS = ("position_ids", "inv_freq", "masked_bias", "relative_position_index", "num_batches_tracked")
"""Buffers that older versions of transformers saved, and current ones compute."""

WRAPPERS: Mapping[str, str] = {
    "_orig_mod": "saved from a model that torch.compile wraps; save the model that was compiled, or remove",
    "module": "saved from a model that DistributedDataParallel wraps; save its .module, or remove",
    "_fsdp_wrapped_module": "saved from a model that FSDP wraps; save a full state dict, or remove",
    "_checkpoint_wrapped_module": "saved from a model with a wrapper for activation checkpointing; remove",
    "base_model.model": "saved from a model that peft wraps; save the result of merge_and_unload(), or remove",
    "base_layer": "saved from a model that peft wraps; save the result of merge_and_unload(), or remove",
    "modules_to_save": "saved from a model that peft wraps; save the result of merge_and_unload(), or remove",
    "original_module": "saved from a model that peft wraps; save the result of merge_and_unload(), or remove",
    "_forward_module": "saved from a model that Lightning wraps; save the model alone, or remove",
    "parametrizations": "saved with torch parametrizations; call remove_parametrizations first, and rename",
}
"""Parts of a name that a wrapper adds, with the cause and the start of the remedy."""

ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
QUANTIZED = ("weight_scale", "weight_scale_inv", "qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map", "SCB")


@dataclass(frozen=True)
class WeightReport:
    """How the weights in the files fit the model.

    Args:
        new: names of newly initialized weights, by the reason for it.
        unused: tensors of the files that the model does not have, as globs with their number.
        dtypes: dtype of each weight in the files, by its name in the model; empty if unknown.
    """

    new: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unused: tuple[tuple[str, int], ...] = ()
    dtypes: Mapping[str, Any] = field(default_factory=dict)

    def messages(self) -> list[str]:
        """What is announced before training."""
        found = [f"newly initialized, because {reason}: {join_some(names)}" for reason, names in self.new.items()]
        if self.unused:
            parts = join_some(with_counts(self.unused))
            found.append(f"not used, because the model of this task does not have them: {parts}")
        return found


@dataclass(frozen=True)
class WeightCheck:
    """Compares the weights of a model with those of its files.

    Args:
        pretrained: where the weights are loaded from.
        model: the model, with or without values.
        head: names of the weights of the head, if the task makes it anew; else empty.
        tensors: the tensors in the files, by name; empty if unknown.
    """

    pretrained: PretrainedSource
    model: PreTrainedModel
    head: frozenset[str]
    tensors: Mapping[str, TensorHeader] = field(default_factory=dict)

    def run(
        self,
        missing: Iterable[str],
        unexpected: Iterable[str],
        mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]],
    ) -> WeightReport:
        """Check what transformers reports about loading the weights.

        Raises:
            UserError: a weight would be random although no head is made anew, or a tensor would be ignored although
                the model has the layer to which it belongs.
        """
        absent = sorted(name for name in missing if not self._is_old_buffer(name))
        unused = sorted(name for name in unexpected if not self._is_old_buffer(name))
        misplaced = [name for name in unused if self._belongs_to_model(name)]
        self._check_shapes([found for found in mismatched if found[0] not in self.head])
        if lost := [name for name in absent if not self._may_be_new(name)]:
            raise UserError(self._missing_message(lost, unused))
        if misplaced:
            raise UserError(self._misplaced_message(misplaced))
        groups = group_by_prefix(unused, [*self.tensors] if self.tensors else unused)
        return WeightReport(_new_weights(absent, self.head), tuple(groups))

    def _may_be_new(self, name: str) -> bool:
        return name in self.head or name.endswith(f".{MASK_WEIGHT}") or is_optional_weight(self.model, name)

    def _is_old_buffer(self, name: str) -> bool:
        """Whether a name is a buffer without information: transformers computes it, or counts with it."""
        header = self.tensors.get(name)
        if name.rpartition(".")[2] in OLD_BUFFERS or (header and header.is_mask_or_index):
            return True
        return not self._computed_buffers.isdisjoint(self._names_in_model(name))

    def _names_in_model(self, name: str) -> tuple[str, ...]:
        """The names that a tensor may have in the model: with and without the prefix of the base model."""
        prefix = f"{self.model.base_model_prefix}."
        return (name, name.removeprefix(prefix), f"{prefix}{name}")

    def _belongs_to_model(self, name: str) -> bool:
        """Whether an unexpected tensor lies inside a layer or a stack of layers that the model has.

        Outside of them are other heads, and encoders and decoders that the model does not have: their part is missing
        from the model itself, or from its base model.
        """
        if is_optional_tensor(self.model, name) or any(part in (*POOLERS, MASK_WEIGHT) for part in name.split(".")):
            return False
        return any(map(self._is_inside, self._names_in_model(name)))

    def _is_inside(self, name: str) -> bool:
        modules = self._modules
        deepest = next((parent for parent in reversed(_parents(name)) if parent in modules), "")
        if deepest in self._head_modules:
            return False
        if deepest in ("", self.model.base_model_prefix):
            return name.rpartition(".")[0] == deepest and modules[deepest]
        return True

    @cached_property
    def _modules(self) -> Mapping[str, bool]:
        """The names of all modules with weights, and whether they have weights of their own."""
        names = list(self.model.state_dict())
        direct = {name.rpartition(".")[0] for name in names}
        return {parent: parent in direct for name in names for parent in ("", *_parents(name))}

    @cached_property
    def _computed_buffers(self) -> frozenset[str]:
        """The names of the buffers that are not saved."""
        return frozenset(name for name, _ in self.model.named_buffers()).difference(self.model.state_dict())

    @cached_property
    def _head_modules(self) -> frozenset[str]:
        """The names of the modules in which the head's weights are, except for those that have others, too."""
        others = {parent for name in self.model.state_dict() if name not in self.head for parent in _parents(name)}
        return frozenset(parent for name in self.head for parent in _parents(name)) - others

    # Messages

    def _check_shapes(self, mismatched: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
        """Reject weights of another shape, in whose place transformers would use newly initialized ones."""
        if not mismatched:
            return
        name, actual, expected = min(mismatched)
        more = f" (and {len(mismatched) - 1} more do not fit)" if len(mismatched) > 1 else ""
        raise UserError(
            f"{self._prefix}: {name} has shape {list(actual)} in the files of {self.pretrained.name_or_path}, but "
            f"{list(expected)} in its config.json{more}; use the config that the weights were saved with"
        )

    def _missing_message(self, lost: Sequence[str], unused: Sequence[str]) -> str:
        names = join_some(with_counts(group_by_prefix(lost, [*self.model.state_dict()])))
        count = pluralize(len(lost), "weight")
        return (
            f"{self._prefix}: the files of {self.pretrained.name_or_path} do not contain {count} of "
            f"{type(self.model).__name__}: {names}; {self._explain(lost, unused)}"
        )

    def _misplaced_message(self, names: Sequence[str]) -> str:
        groups = join_some(with_counts(group_by_prefix(names, [*self.tensors] or names)))
        cause = _wrapper_cause(names) or (
            f"{type(self.model).__name__} has these layers, but not these weights with this config.json; use the "
            "config that the weights were saved with"
        )
        return (
            f"{self._prefix}: {pluralize(len(names), 'tensor')} of {self.pretrained.name_or_path} would be ignored: "
            f"{groups}; {cause}"
        )

    def _explain(self, lost: Sequence[str], unused: Sequence[str]) -> str:
        """The likely cause of missing weights, and the remedy."""
        if cause := _wrapper_cause(unused):
            return cause
        if prefix := _common_extra_prefix(lost, unused):
            return f"they have the prefix {prefix!r} there; remove it from all names"
        if tied := self._tied_counterpart(lost):
            return f"if it is tied to {tied}, set tie_word_embeddings: true in config.json"
        if unused:
            example = join_some(with_counts(group_by_prefix(unused, [*self.tensors] or unused)), 3)
            return f"instead they have {example}; use the config that the weights were saved with"
        return f"use weights that were saved from a {type(self.model).__name__}"

    def _tied_counterpart(self, lost: Sequence[str]) -> str | None:
        """The weight to which the only missing one is usually tied."""
        return tied_weight(self.model, lost[0]) if len(lost) == 1 else None

    @property
    def _prefix(self) -> str:
        return f"model.source: {self.pretrained.source}"


def check_ties(pretrained: PretrainedSource, files: WeightFiles, pairs: Iterable[tuple[str, str]]) -> None:
    """Check that tied weights of which the files have both are equal; transformers would not tie them otherwise.

    Raises:
        UserError: they differ.
    """
    for name, other in pairs if files.files else ():
        if not files.equal(name, other):
            raise UserError(tie_message(pretrained, name, other))


def tie_message(pretrained: PretrainedSource, name: str, other: str) -> str:
    return (
        f"model.source: {pretrained.source}: {name} and {other} are tied (tie_word_embeddings: true in config.json), "
        f"but differ in the files of {pretrained.name_or_path}; if both are meant, set tie_word_embeddings: false in "
        "config.json, otherwise save the model again with one of them"
    )


def check_duplicates(pretrained: PretrainedSource, duplicates: Iterable[tuple[str, ...]]) -> None:
    """Reject several tensors for the same weight, of which only one would be loaded.

    Raises:
        UserError: there are some.
    """
    for names in duplicates:
        raise UserError(
            f"model.source: {pretrained.source}: {' and '.join(names)} in the files of {pretrained.name_or_path} are "
            "the same weight of the model; remove one of them"
        )


def _new_weights(absent: Sequence[str], head: frozenset[str]) -> dict[str, list[str]]:
    reasons = {
        "the checkpoint does not contain them": [name for name in absent if name in head],
        "they are optional, and the checkpoint does not contain them": [name for name in absent if name not in head],
    }
    return {reason: names for reason, names in reasons.items() if names}


def _parents(name: str) -> list[str]:
    """The names of the modules around a tensor, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _wrapper_cause(names: Sequence[str]) -> str | None:
    """Which wrapper gave the tensors their names."""
    for wrapper, cause in WRAPPERS.items():
        if any(f".{name}".find(f".{wrapper}.") >= 0 for name in names):
            return f"they were {cause} {wrapper!r} from all names"
    parts = {part for name in names for part in name.split(".")}
    if parts.intersection(ADAPTERS):
        return "they belong to an adapter that is not merged; save the result of merge_and_unload()"
    if parts.intersection(QUANTIZED):
        return "they belong to quantized weights, which are not supported; use the weights before quantization"
    return None


def _common_extra_prefix(lost: Sequence[str], unused: Sequence[str]) -> str | None:
    """The prefix that the tensors have in the files, and the missing weights do not have."""
    for name in unused:
        for missing in lost:
            if name.endswith(f".{missing}"):
                return name.removesuffix(missing)
    return None
