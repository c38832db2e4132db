"""Fields of other projects are answered with the field that does the same here."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic.alias_generators import to_snake

from finetune_api.field_paths import schema_paths
from finetune_api.foreign_fields import FOREIGN_FIELDS, find_foreign_field
from finetune_api.loading import check_manifests
from finetune_api.suggestions import normalize

MANIFEST = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: job}
spec:
  model: {source: pvc://models/clip}
  data: {train: {source: pvc://captions/train}}
  training: {epochs: 2}
  modules:
    - {name: all, parameters: ["*"], optimizer: {type: AdamW, learningRate: 1e-4}}
"""

HUGGING_FACE = """
learningRate gradientAccumulationSteps warmupSteps warmupRatio perDeviceTrainBatchSize numTrainEpochs lrSchedulerType
weightDecay maxSteps maxGradNorm evalStrategy evalSteps saveSteps saveStrategy saveTotalLimit loadBestModelAtEnd bf16
fp16 gradientCheckpointing outputDir optim adamBeta1 metricForBestModel greaterIsBetter reportTo pushToHub
dataloaderNumWorkers resumeFromCheckpoint
"""
PEFT = "r loraRank loraAlpha loraDropout targetModules useDora"
OTHERS = """
baseModel datasets sequenceLen samplePacking numEpochs lrScheduler valSetSize loadIn4bit modelNameOrPath cutoffLen
datasetName maxSeqLength enableActivationCheckpointing maxEpochs gradientClipVal accumulateGradBatches devices
accelerator strategy numNodes numProcPerNode resourcesPerNode runtimeRef instanceType maxTrialCount
"""


@pytest.mark.parametrize("name", [*HUGGING_FACE.split(), *PEFT.split(), *OTHERS.split()])
def test_names_of_other_projects_are_known_in_both_spellings(name: str) -> None:
    assert find_foreign_field(name) is not None
    assert find_foreign_field(to_snake(name)) is find_foreign_field(name)


def test_every_target_exists_in_the_schema() -> None:
    targets = {f"spec.{field}" for entry in FOREIGN_FIELDS for field in entry.fields}
    assert targets <= schema_paths()


def test_every_entry_has_a_field_or_a_note() -> None:
    assert [entry.names for entry in FOREIGN_FIELDS if not str(entry)] == []


def test_no_name_has_two_entries() -> None:
    counts = Counter(normalize(name) for entry in FOREIGN_FIELDS for name in entry.names)
    assert [name for name, count in counts.items() if count > 1] == []


def messages(old: str, new: str) -> list[str]:
    assert old in MANIFEST
    (result,) = check_manifests(MANIFEST.replace(old, new), "job.yaml")
    return [str(issue).removeprefix("job.yaml:") for issue in result.issues]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 2", "learningRate: 1e-3", "spec.training.learningRate: unknown field; "
         "use modules[].optimizer.learningRate (set per module)"),
        ("epochs: 2", "num_train_epochs: 3", "spec.training.num_train_epochs: unknown field; use training.epochs"),
        ("epochs: 2", "loadIn4bit: true", "spec.training.loadIn4bit: unknown field; quantization is not supported"),
        ("name: all,", "name: all, loraAlpha: 16,", "spec.modules[0].loraAlpha: unknown field; "
         "use modules[].adapter.alpha (set per module)"),
    ],
)  # fmt: skip
def test_foreign_field_is_answered_with_the_field_to_use(old: str, new: str, expected: str) -> None:
    (message,) = messages(old, new)
    assert message.split(": ", 1)[1] == expected


def test_other_spelling_of_a_field_is_preferred() -> None:
    (message,) = messages("epochs: 2", "batch_size: 8")
    assert message.endswith("did you mean 'batchSize'?")


def test_field_of_another_member_of_the_union_is_not_answered_with_itself() -> None:
    (message,) = messages("type: AdamW,", "type: AdamW, momentum: 0.9,")
    assert "spec.modules[0].optimizer.momentum: unknown field; expected one of type, learningRate" in message
