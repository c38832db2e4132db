"""Makes the prediction for a row independent of the other rows of its batch and of padding, or refuses the model.

A classifier may find the last token by a padding token that its tokenizer does not use; absolute positions shift when
texts are padded on the left; some architectures (convolutions, Fourier mixing) let padding into the result whatever the
attention mask says. The metrics of such a run hold for its own batches only. Rules by architecture would never be
complete, so a few rows are predicted alone and together with the loaded model, before the first step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from finetune_trainer.data import Batch, Dataset, Sample
from finetune_trainer.errors import RunError, UserError
from finetune_trainer.tasks import Processors, Task
from finetune_trainer.training.assembly import AssembledModel
from finetune_trainer.training.device import DeviceConfig

PROBED_ROWS = 16
"""Rows from which those that are compared are selected by length."""

COMPARED_ROWS = 4
"""Rows of different lengths that are compared: the effect of padding may depend on the length modulo a block."""

FP32_TOLERANCE, CUDA_TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-3, 0.15
"""Differences that rounding explains, relative to the largest value. cuDNN computes FP32 convolutions in TF32."""


def ensure_independent_predictions(
    model: AssembledModel,
    task: Task,
    processors: Processors,
    rows: IndependenceCheck,
    micro_batch_size: int,
) -> tuple[AssembledModel, list[str]]:
    """Make predictions independent of the other rows of a batch.

    For texts that the tokenizer pads, it tries padding on the right, then on the left, each with the padding token of
    the model's config and with that of the tokenizer, then groups of texts with the same length.

    Args:
        model: the model with its weights, on the device.
        task: the task.
        processors: their tokenizer is configured.
        rows: compares predictions.
        micro_batch_size: rows in a batch; with one row, a model that depends on others is accepted.

    Returns:
        The model that the loop calls, and messages about what was changed.

    Raises:
        UserError: the predictions of this model depend on the other rows of a batch.
    """
    if _can_group_by_length(model, task) and not _accepts(model.base, "attention_mask"):
        return _group_by_length(model, processors)
    tokenizer = processors.tokenizer if task.uses_tokenizer_padding else None
    if micro_batch_size == 1 and tokenizer is None:
        return model, []
    before = PaddingConfig.current(model.base, tokenizer)
    for padding in before.alternatives(processors) if tokenizer else [before]:
        padding.apply(model.base, tokenizer)
        if rows.are_independent(model.forward):
            return model, list(padding.changes_from(before))
    before.apply(model.base, tokenizer)
    if _can_group_by_length(model, task) and rows.can_predict_alone(model.forward):
        grouped, notes = _group_by_length(model, processors)
        if rows.are_independent(grouped.forward):
            return grouped, notes
    if micro_batch_size == 1:
        return model, []
    raise UserError(
        f"model.source: predictions of this model ({type(model.base).__name__}) depend on the other rows of a batch"
        f"{' and on padding' if task.uses_text else ''}, so no metric would hold for another batch; set "
        "training.microBatchSize to 1, or choose another model"
    )


@dataclass(frozen=True)
class PaddingConfig:
    """How texts are padded.

    Args:
        side: `padding_side` of the tokenizer.
        pad_token_id: `pad_token_id` of the model's config.
    """

    side: str
    pad_token_id: int | None

    @classmethod
    def current(cls, model: PreTrainedModel, tokenizer: Any) -> PaddingConfig:
        return cls(getattr(tokenizer, "padding_side", ""), _get_pad_token_id(model))

    def alternatives(self, processors: Processors) -> list[PaddingConfig]:
        """In the order in which they are tried. Texts of one length are padded as in pretraining."""
        sides = (self.side,) if processors.padding == "max_length" else ("right", "left")
        tokens = dict.fromkeys((self.pad_token_id, processors.tokenizer.pad_token_id))
        return [PaddingConfig(side, token) for side in sides for token in tokens]

    def apply(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Configure the tokenizer and the model; both are saved with the result."""
        if tokenizer is not None:
            tokenizer.padding_side = self.side
            tokenizer.init_kwargs["padding_side"] = self.side  # only arguments of its constructor are saved
        if self.pad_token_id != _get_pad_token_id(model):
            model.config.get_text_config().pad_token_id = self.pad_token_id

    def changes_from(self, before: PaddingConfig) -> Iterator[str]:
        """What differs, for the user."""
        if self.side != before.side:
            yield f"padding texts on the {self.side} (padding_side of the tokenizer was {before.side})"
        if self.pad_token_id != before.pad_token_id:
            yield (
                f"setting pad_token_id of the model from {before.pad_token_id} to {self.pad_token_id}, the token that "
                "its tokenizer pads with: the model finds the end of a text by it"
            )


class IndependenceCheck:
    """Compares predictions for a few rows alone with those for all of them together.

    Args:
        task: the task.
        collate: makes a batch of samples.
        dataset: the rows.
        device_config: device and precision.
    """

    def __init__(
        self, task: Task, collate: Callable[[Sequence[Sample]], Batch], dataset: Dataset, device_config: DeviceConfig
    ) -> None:
        self.task, self.collate, self.device_config = task, collate, device_config
        self.rows = self._select_rows(dataset)

    def are_independent(self, model: nn.Module) -> bool:
        """Whether predictions are the same, apart from rounding.

        A model that is random in evaluation, that fails alone and together, or that runs out of memory, cannot be
        compared: True. The first step reports why it fails.
        """
        if not self.rows:
            return True
        try:
            alone, together = self._predict_alone(model), self._predict(model, [self.rows])
            if alone is None or together is None:
                return alone is together
            tolerance = self._tolerance(model)
            return _are_close(alone, together, tolerance) or not _are_close(
                alone, self._predict_alone(model) or [], tolerance
            )
        except torch.OutOfMemoryError:
            return True

    def can_predict_alone(self, model: nn.Module) -> bool:
        """Whether the model accepts a row without padding; some need a minimum length."""
        return self._predict_alone(model) is not None

    def _predict_alone(self, model: nn.Module) -> list[Mapping[str, Tensor]] | None:
        return self._predict(model, [[row] for row in self.rows])

    def _predict(self, model: nn.Module, batches: Sequence[Sequence[Sample]]) -> list[Mapping[str, Tensor]] | None:
        """The predictions for each batch; None if the model fails."""
        model.eval()
        devices = [torch.cuda.current_device()] if self.device_config.is_cuda else []
        moved = [self.device_config.move(self.collate(rows)) for rows in batches]
        with torch.no_grad(), torch.random.fork_rng(devices), self._autocast(model):
            try:
                found = [self.task.predict(model, batch) for batch in moved]
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError):
                return None
        return [{name: part[name].float() for name in self.task.row_predictions} for part in found]

    def _select_rows(self, dataset: Dataset) -> list[Sample]:
        """Rows of different lengths. Texts of one length are not padded, so one that is longer is added."""
        if not self.task.uses_text:
            return list(_read_rows(dataset, 2))
        rows = list(_read_rows(dataset, PROBED_ROWS))
        by_length = {self.collate([row])["input_ids"].shape[1]: row for row in rows}
        if len(by_length) == 1 and "text" in rows[0]:
            return [rows[0], {**rows[0], "text": f"{rows[0]['text']} {rows[0]['text']}"}]
        lengths = sorted(by_length)
        return [by_length[lengths[index]] for index in _spread(len(lengths), COMPARED_ROWS)]

    def _autocast(self, model: nn.Module) -> Any:
        """Autocast only where weights have 16 bits: FP32 tells small differences from rounding."""
        return nullcontext() if _is_fp32(model) else self.device_config.autocast()

    def _tolerance(self, model: nn.Module) -> float:
        if not _is_fp32(model):
            return HALF_TOLERANCE
        return CUDA_TOLERANCE if self.device_config.is_cuda else FP32_TOLERANCE


class EqualLengthBatches(nn.Module):
    """Calls a classifier with groups of texts that have the same length, so that none is padded.

    Args:
        model: the model, or a wrapper of it.
        padding_side: the side on which texts are padded in the batches that this module is called with.
        accepts_mask: whether the model has an argument `attention_mask`.
    """

    def __init__(self, model: nn.Module, padding_side: str, accepts_mask: bool) -> None:
        super().__init__()
        self.model, self.padding_side, self.accepts_mask = model, padding_side, accepts_mask

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits of shape (texts, classes), in the order of the batch. The mask gives the lengths."""
        lengths, size = attention_mask.sum(dim=1), attention_mask.shape[1]
        if self.accepts_mask:
            inputs["attention_mask"] = attention_mask
        rows: list[Tensor] = []
        logits: list[Tensor] = []
        for length in torch.unique(lengths).tolist():
            span = slice(0, length) if self.padding_side == "right" else slice(size - length, size)
            rows.append((lengths == length).nonzero().flatten())
            group = {name: _select(value, rows[-1], span, size) for name, value in inputs.items()}
            logits.append(self.model(**group).logits)
        return SequenceClassifierOutput(logits=torch.cat(logits)[torch.cat(rows).argsort()])


def _can_group_by_length(model: AssembledModel, task: Task) -> bool:
    """Whether the outputs are logits by row, and nothing else that belongs to a whole batch."""
    has_batch_loss = getattr(model.base.config, "output_router_logits", False)
    return task.uses_tokenizer_padding and task.row_predictions == ("logits",) and not has_batch_loss


def _group_by_length(model: AssembledModel, processors: Processors) -> tuple[AssembledModel, list[str]]:
    accepts_mask = _accepts(model.base, "attention_mask")
    forward = EqualLengthBatches(model.forward, processors.tokenizer.padding_side, accepts_mask)
    reason = "its predictions depend on padding" if accepts_mask else "it has no attention_mask"
    note = f"calling the model once for each length of the texts in a batch: {reason} ({type(model.base).__name__})"
    return replace(model, forward=forward), [note]


def _read_rows(dataset: Dataset, count: int) -> Iterator[Sample]:
    """A few rows. One that cannot be read is reported when training reads it."""
    for index in _spread(len(dataset), count):
        with suppress(RunError):
            yield dataset[index]


def _spread(length: int, count: int) -> list[int]:
    """At most `count` indices below `length`, evenly spaced, with the first and the last."""
    indices: list[int] = np.unique(np.linspace(0, length - 1, count).astype(int)).tolist()
    return indices if length else []


def _select(values: Tensor, rows: Tensor, span: slice, size: int) -> Tensor:
    """Some rows, and of values by token those in a span."""
    return values[rows][:, span] if values.dim() > 1 and values.shape[1] == size else values[rows]


def _are_close(left: Sequence[Mapping[str, Tensor]], right: Sequence[Mapping[str, Tensor]], tolerance: float) -> bool:
    return bool(right) and all(
        _is_close(torch.cat([part[name] for part in left]), torch.cat([part[name] for part in right]), tolerance)
        for name in left[0]
    )


def _is_close(left: Tensor, right: Tensor, tolerance: float) -> bool:
    if left.shape != right.shape:
        return False
    if not left.isfinite().all() or not left.numel():
        return True  # no prediction to compare; the evaluation reports it
    return bool((left - right).abs().max() <= tolerance * left.abs().max())


def _is_fp32(model: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in model.parameters())


def _get_pad_token_id(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "pad_token_id", None)


def _accepts(model: nn.Module, argument: str) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(it.name == argument or it.kind is inspect.Parameter.VAR_KEYWORD for it in parameters)
