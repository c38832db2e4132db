"""SigLIP: a dual encoder with a logit bias, trained with texts padded to the maximum length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import PreparedRun, prepare
from finetune_trainer.tasks.base import Processors
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

FAST: dict[str, Any] = {
    "modules": [{"name": "all", "parameters": ["*"], "optimizer": {"type": "AdamW", "learningRate": 1e-2}}],
    "training": {"batchSize": 6, "epochs": 8},
    "data": {"validation": {"fraction": 0.3}},
}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    tiny.write_siglip(folder / "models" / "siglip")
    tiny.write_rows(folder / "data" / "colours", tiny.captioned(30))
    return folder


def prepare_run(siglip: Path) -> tuple[PreparedRun, Processors]:
    prepared_run = prepare(tiny.job("siglip", "colours"), tiny.claim_paths(siglip, siglip))
    return prepared_run, model_loader.load_processors(
        prepared_run.pretrained, prepared_run.task, prepared_run.config, None
    )


def test_run_learns(siglip: Path, out: Path) -> None:
    callback = tiny.Recorder()
    run(tiny.job("siglip", "colours", **FAST), RunOptions(claims=tiny.claim_paths(siglip, out)), callback)
    first, last = callback.evaluations[0].metrics, callback.evaluations[-1].metrics
    assert last["eval/loss"] < first["eval/loss"] * 0.8
    assert last["eval/recall_at_1"] > first["eval/recall_at_1"]
    AutoModel.from_pretrained(out / "result")


def test_embedding_does_not_depend_on_the_other_texts_of_a_batch(siglip: Path) -> None:
    prepared_run, processors = prepare_run(siglip)
    model, _ = model_loader.load_model(prepared_run.pretrained, prepared_run.task, prepared_run.config)
    short, long = "the red", "a photo of something good the film of something blue"
    alone, beside = processors.tokenize([short]), processors.tokenize([short, long])
    assert alone["input_ids"].shape[1] == beside["input_ids"].shape[1] == 16
    for inputs in (alone, beside):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        one, two = (model.eval().get_text_features(**inputs).pooler_output[0] for inputs in (alone, beside))
    torch.testing.assert_close(one, two)


def test_softmax_loss_does_not_depend_on_the_logit_bias(siglip: Path) -> None:
    prepared_run, processors = prepare_run(siglip)
    model, _ = model_loader.load_model(prepared_run.pretrained, prepared_run.task, prepared_run.config)
    batch = prepared_run.task.make_batch([prepared_run.train[index] for index in range(6)], processors)
    prepared_run.task.loss(model.eval(), batch).backward()
    bias, scale = model.logit_bias.grad, model.logit_scale.grad
    assert bias is not None
    assert scale is not None
    assert abs(float(bias)) < 1e-5 < abs(float(scale))
