"""What each field of a job's spec has an effect on: the result, the position in the data, or neither.

A run that was interrupted resumes by itself only if no field with an effect on the result has changed. The table is
explicit: a test fails when a field of the API is missing from it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any


class Effect(StrEnum):
    """What a field has an effect on."""

    RESULT = "Result"
    """What is trained, or what is reported about it. A run can continue with another value from its checkpoint."""
    POSITION = "Position"
    """Which samples belong to which step, or which model is trained. A run can only start over with another value."""
    NEITHER = "Neither"
    """Where and how fast the job runs, and what is kept of it."""


_FIELDS = {
    Effect.POSITION: """
        task entrypoint
        data.validation.fraction data.splitSeed data.packing
        data.fold.index data.fold.count data.fold.splitSeed data.fold.groupBy data.fold.stratifyBy
        training.batchSize training.seed
    """,
    # A source may change if the content is the same; the trainer compares fingerprints of the content.
    Effect.RESULT: """
        model.source model.revision
        data.train.source data.train.config data.train.split data.train.revision
        data.validation.source data.validation.config data.validation.split data.validation.revision
        data.test.source data.test.config data.test.split data.test.revision
        data.columns.image data.columns.text data.columns.label
        data.columns.messages data.columns.tools data.columns.prompt data.columns.completion
        data.maxLength
        training.epochs training.steps training.microBatchSize training.precision training.clipGradNorm
        training.deterministic training.compile training.activationCheckpointing
        evaluation.every.steps evaluation.every.epochs evaluation.metric evaluation.direction
        evaluation.earlyStopping.patience evaluation.earlyStopping.minDelta
        modules[].name modules[].parameters modules[].exclude modules[].frozen
        modules[].optimizer.type modules[].optimizer.learningRate modules[].optimizer.weightDecay
        modules[].optimizer.momentum modules[].optimizer.dampening modules[].optimizer.nesterov
        modules[].optimizer.beta1 modules[].optimizer.beta2 modules[].optimizer.epsilon modules[].optimizer.amsgrad
        modules[].optimizer.alpha modules[].optimizer.centered modules[].optimizer.initialAccumulatorValue
        modules[].optimizer.beta2Decay modules[].optimizer.d modules[].optimizer.momentumDecay
        modules[].optimizer.decoupledWeightDecay modules[].optimizer.nsSteps modules[].optimizer.adjustLrFn
        modules[].schedule[].type modules[].schedule[].steps modules[].schedule[].epochs modules[].schedule[].fraction
        modules[].schedule[].factor modules[].schedule[].startFactor modules[].schedule[].rate
        modules[].schedule[].unit modules[].schedule[].staircase modules[].schedule[].everySteps
        modules[].schedule[].everyEpochs modules[].schedule[].milestones modules[].schedule[].gamma
        modules[].schedule[].minFactor modules[].schedule[].cycles modules[].schedule[].periodSteps
        modules[].schedule[].periodEpochs modules[].schedule[].periodMultiplier modules[].schedule[].endFactor
        modules[].schedule[].power modules[].schedule[].timescaleSteps modules[].schedule[].patience
        modules[].schedule[].minDelta
        modules[].regularization.l1 modules[].regularization.l2
        modules[].decayExclude modules[].clipGradNorm
        modules[].freeze.untilStep modules[].freeze.untilEpoch modules[].freeze.fromStep modules[].freeze.fromEpoch
        modules[].adapter.type modules[].adapter.rank modules[].adapter.alpha modules[].adapter.dropout
        modules[].adapter.targetModules
        unmatched checkpoint.keepBest output.dtype
    """,
    # How bad rows are handled decides which rows are used; the fingerprint of the data shows whether they changed.
    Effect.NEITHER: """
        data.onBadRow data.maxBadRows data.workers
        checkpoint.everySteps checkpoint.everyEpochs checkpoint.everySeconds checkpoint.keep
        output.destination output.ifExists
        resources.nodes resources.gpusPerNode resources.device resources.gpuResource resources.cpu resources.memory
        resources.ephemeralStorage resources.sharedMemory
        retry.limit retry.backoffSeconds
        stallTimeoutSeconds queueName workloadPriorityClassName
        suspend activeDeadlineSeconds ttlSecondsAfterFinished
        runtime
    """,
}

FIELD_EFFECTS: Mapping[str, Effect] = {path: effect for effect, text in _FIELDS.items() for path in text.split()}
"""The effect of each leaf field of the spec; `runtime` stands for all fields below it, which only concern the pod."""


def effect_of(path: str) -> Effect:
    """The effect of a field. One that the table does not have, e.g. of another version, has an effect on the result.

    >>> effect_of("modules[1].optimizer.learningRate"), effect_of("runtime.env[0].name")
    (<Effect.RESULT: 'Result'>, <Effect.NEITHER: 'Neither'>)
    """
    if path.split(".", maxsplit=1)[0] == "runtime":
        return FIELD_EFFECTS["runtime"]
    return FIELD_EFFECTS.get(re.sub(r"\[\d+\]", "[]", path).removesuffix("[]"), Effect.RESULT)


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a spec with their paths.

    >>> list(flatten({"modules": [{"name": "all", "parameters": ["*"]}]}))
    [('modules[0].name', 'all'), ('modules[0].parameters[0]', '*')]
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from flatten(inner, f"{path}[{position}]")
    else:
        yield path, value


def hash_fields(spec: Mapping[str, Any], *effects: Effect) -> str:
    """SHA-256 (hex) of the fields of a spec that have one of these effects."""
    hashed = {path: value for path, value in flatten(spec) if effect_of(path) in effects}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
