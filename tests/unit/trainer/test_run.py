"""Complete runs of tiny models: what is trained when, at which learning rate, and what is reported."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CLIPModel,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    VisionTextDualEncoderModel,
    ViTImageProcessor,
)

from finetune_api import FineTuneJob
from finetune_api.status import Report
from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.tasks.causal_lm import CausalLM
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.tasks.metrics import ClassificationMetrics
from finetune_trainer.training.checkpoint import CheckpointManager
from finetune_trainer.training.freeze import set_train_mode
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import Recorder


def go(job: FineTuneJob, claims: Path, out: Path, **options: Any) -> tuple[Recorder, Report]:
    recorder = Recorder()
    report = run(job, RunOptions(claims=tiny.claim_paths(claims, out), **options), recorder)
    assert recorder.closed == 1
    assert recorder.report == report
    return recorder, report


@pytest.fixture
def keep_checkpoints(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of `checkpoint` with which the checkpoint of every step is kept."""
    monkeypatch.setattr(CheckpointManager, "remove", lambda self: None)
    return {"everySteps": 1, "keep": 100}


def load_checkpoint(out: Path, step: int, file: str) -> dict[str, torch.Tensor]:
    (folder,) = out.glob(f"result/.checkpoints/*/step-{step:08d}")
    return dict(load_file(folder / f"{file}.safetensors"))


def load_model_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights by the model's current parameter names; files may have older ones."""
    return dict(VisionTextDualEncoderModel.from_pretrained(folder).named_parameters())


def trained_parameters(out: Path, step: int) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint, without buffers."""
    names = load_model_weights(out / "result")
    return {name: tensor for name, tensor in load_checkpoint(out, step, "weights").items() if name in names}


def equal_parameters(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor], prefix: str = "") -> list[bool]:
    """For each parameter, whether it is equal in both."""
    equal = [torch.equal(weights[name], others[name]) for name in others if name.startswith(prefix)]
    assert equal
    return equal


def test_complete_run(claims: Path, out: Path) -> None:
    recorder, report = go(tiny.contrastive_job(), claims, out)
    assert report.reason == "Succeeded"
    assert recorder.plan is not None
    assert (recorder.plan.planned_steps, recorder.plan.train_samples, recorder.plan.validation_samples) == (6, 21, 9)
    assert [record.step for record in recorder.steps] == [1, 2, 3, 4, 5, 6]
    assert recorder.has_message("dropping the last incomplete batch: 3 of 21 samples per epoch")
    assert report.progress is not None
    assert (report.progress.step, report.progress.planned_steps, report.progress.percentage) == (6, 6, 100)
    assert {metric.name for metric in report.metrics} >= {"train/loss", "eval/recall_at_1"}
    assert report.best is not None and report.best.metric == "eval/recall_at_1"
    assert [module.name for module in report.modules] == ["visual", "textual", "temperature"]
    assert not list(out.glob("result/.checkpoints"))


def test_evaluates_before_the_first_step_at_intervals_and_after_the_last(claims: Path, out: Path) -> None:
    recorder, _ = go(tiny.contrastive_job(evaluation={"every": {"steps": 4}}), claims, out)
    assert [record.step for record in recorder.evaluations] == [0, 4, 6]
    assert not recorder.evaluations[0].best
    recalls = {f"eval/{kind}recall_at_{k}" for kind in ("", "text_to_image_") for k in (1, 5)}
    assert {"eval/loss", "eval/zero_shot_accuracy", *recalls} == set(recorder.evaluations[0].metrics)


def test_learning_rates_follow_the_schedules(claims: Path, out: Path) -> None:
    recorder, _ = go(tiny.contrastive_job(), claims, out)
    assert recorder.plan is not None
    for module in recorder.plan.modules:
        rates = [record.learning_rates[module.name] for record in recorder.steps]
        assert rates == [module.learning_rate(step) for step in range(6)]
    assert [record.learning_rates["visual"] for record in recorder.steps[:3]] == [0.0, 0.005, 0.01]


def test_frozen_module_has_no_change_no_state_no_gradient(
    claims: Path, out: Path, keep_checkpoints: dict[str, Any]
) -> None:
    recorder, _ = go(tiny.contrastive_job(checkpoint=keep_checkpoints), claims, out)
    start = load_model_weights(claims / "models" / "dual")
    for step in (1, 2, 3):
        weights, state = load_checkpoint(out, step, "weights"), load_checkpoint(out, step, "optimizer")
        assert all(equal_parameters(weights, start, "text_"))
        assert not [name for name in state if name.startswith("text_")]
    unfrozen, state = load_checkpoint(out, 4, "weights"), load_checkpoint(out, 4, "optimizer")
    assert not all(equal_parameters(unfrozen, start, "text_"))
    assert state["text_projection.weight/step"].item() == 1
    assert "logit_scale" not in load_checkpoint(out, 6, "weights"), (
        "a checkpoint has no parameter that is never trained"
    )
    assert torch.equal(load_model_weights(out / "result")["logit_scale"], start["logit_scale"])
    assert [record.frozen["textual"] for record in recorder.steps] == [True] * 3 + [False] * 3
    assert [record.gradient_norms["textual"] > 0 for record in recorder.steps] == [False] * 3 + [True] * 3
    assert all(record.gradient_norms["temperature"] == 0 for record in recorder.steps)


def test_freezing_again_stops_weight_decay_and_clears_state(
    claims: Path, out: Path, keep_checkpoints: dict[str, Any]
) -> None:
    optimizer = {"type": "AdamW", "learningRate": 1e-2, "weightDecay": 0.5}
    modules: list[dict[str, Any]] = [
        {"name": "early", "parameters": ["vis*"], "optimizer": optimizer, "freeze": {"fromStep": 2}},
        {"name": "rest", "parameters": ["text*", "logit_scale"], "optimizer": optimizer},
    ]
    go(tiny.contrastive_job(modules=modules, checkpoint=keep_checkpoints), claims, out)
    before, after = load_checkpoint(out, 2, "weights"), load_checkpoint(out, 6, "weights")
    assert all(equal_parameters(before, after, "vis"))
    assert not all(equal_parameters(before, after, "text_"))
    assert [name for name in load_checkpoint(out, 2, "optimizer") if name.startswith("vis")]
    assert not [name for name in load_checkpoint(out, 3, "optimizer") if name.startswith("vis")]


def test_gradient_accumulation_equals_the_full_batch(claims: Path, out: Path, tmp_path: Path) -> None:
    def losses(micro: int, name: str) -> list[float]:
        training = {"batchSize": 8, "microBatchSize": micro, "epochs": 3}
        job = tiny.job("calm", "reviews", task="SequenceClassification", training=training)
        return [record.loss for record in go(job, tmp_path, out / name)[0].steps]

    (tmp_path / "data").symlink_to(claims / "data")
    model = AutoModelForSequenceClassification.from_pretrained(claims / "models" / "bert", hidden_dropout_prob=0.0)
    model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(tmp_path / "models" / "calm")
    tiny.tokenizer().save_pretrained(tmp_path / "models" / "calm")
    assert losses(2, "accumulated") == pytest.approx(losses(8, "full"), rel=1e-5)


def test_nonfinite_step_is_skipped_for_all_modules(
    claims: Path, out: Path, keep_checkpoints: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Contrastive.loss, []

    def sometimes_nan(self: Contrastive, model: Any, batch: Any) -> torch.Tensor:
        calls.append(1)  # the first is the trial batch
        return original(self, model, batch) * (math.nan if len(calls) == 1 + 5 else 1.0)

    monkeypatch.setattr(Contrastive, "loss", sometimes_nan)
    recorder, report = go(tiny.contrastive_job(checkpoint=keep_checkpoints), claims, out)
    assert [record.skipped for record in recorder.steps] == [False] * 4 + [True, False]
    for file in ("weights", "optimizer"):
        before, after = load_checkpoint(out, 4, file), load_checkpoint(out, 5, file)
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert recorder.has_message("skipping step 5 for all modules: the loss is nan")
    assert report.reason == "Succeeded"
    rows = [json.loads(line) for line in (out / "result" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if row["type"] == "step"][4] is None, "NaN is not JSON"


def test_early_stopping(claims: Path, out: Path) -> None:
    stopping = {"every": {"steps": 1}, "metric": "eval/loss", "earlyStopping": {"patience": 2, "minDelta": 100.0}}
    recorder, report = go(tiny.contrastive_job(evaluation=stopping), claims, out)
    assert [record.step for record in recorder.steps] == [1, 2, 3]
    assert recorder.has_message("stopped early after step 3: eval/loss no longer improves")
    assert report.reason == "Succeeded"


def test_best_weights_are_exported(claims: Path, out: Path, keep_checkpoints: dict[str, Any]) -> None:
    evaluation = {"every": {"steps": 1}, "metric": "eval/loss", "direction": "Maximize"}
    recorder, report = go(tiny.contrastive_job(evaluation=evaluation, checkpoint=keep_checkpoints), claims, out)
    losses = [record.metrics["eval/loss"] for record in recorder.evaluations[1:]]
    best = losses.index(max(losses)) + 1
    assert best < 6, "the loss decreases, so its maximum is early"
    assert all(equal_parameters(load_model_weights(out / "result"), trained_parameters(out, best)))
    assert not all(equal_parameters(load_model_weights(out / "result"), trained_parameters(out, 6)))
    assert f"step {best}, the best by eval/loss" in report.message


def test_last_weights_are_exported_without_keep_best(claims: Path, out: Path, keep_checkpoints: dict[str, Any]) -> None:
    go(tiny.contrastive_job(checkpoint=keep_checkpoints | {"keepBest": False}), claims, out)
    assert all(equal_parameters(load_model_weights(out / "result"), trained_parameters(out, 6)))


def test_result_is_reproducible_with_and_without_workers(claims: Path, out: Path) -> None:
    digests = set()
    for name, workers in (("a", 0), ("b", 2), ("c", 0)):
        report = go(tiny.contrastive_job(data={"workers": workers}), claims, out / name)[1]
        assert report.output is not None
        digests.add(report.output.digest)
    assert len(digests) == 1


def test_result_depends_on_the_seed(claims: Path, out: Path) -> None:
    one, other = (go(tiny.contrastive_job(training={"seed": seed}), claims, out / str(seed))[1] for seed in (0, 1))
    assert one.output is not None and other.output is not None
    assert one.output.digest != other.output.digest


@pytest.mark.parametrize("precision", ["BF16", "FP16"])
def test_weights_stay_fp32(precision: str, claims: Path, out: Path) -> None:
    recorder, _ = go(tiny.contrastive_job(training={"precision": precision}), claims, out)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(out / "result" / "model.safetensors").values())
    assert all(math.isfinite(record.loss) for record in recorder.steps)


def test_job_with_model_and_data_only(claims: Path, out: Path) -> None:
    recorder, _ = go(tiny.job("clip", "colours"), claims, out)
    assert recorder.evaluations == []
    assert recorder.steps[-1].loss < recorder.steps[0].loss + 0.5
    CLIPModel.from_pretrained(out / "result")


def test_classifier_learns_and_loads(claims: Path, out: Path) -> None:
    modules = [{"name": "all", "parameters": ["*"], "optimizer": {"type": "AdamW", "learningRate": 2e-2}}]
    job = tiny.job("bert", "reviews", modules=modules, training={"epochs": 20}, data={"validation": {"fraction": 0.2}})
    recorder, _ = go(job, claims, out)
    assert max(record.metrics["eval/accuracy"] for record in recorder.evaluations) == 1.0
    model = AutoModelForSequenceClassification.from_pretrained(out / "result")
    encoded = AutoTokenizer.from_pretrained(out / "result")(["a good film", "a bad film"], return_tensors="pt")
    assert model(**encoded).logits.argmax(dim=1).tolist() == [1, 0]


def test_new_head_is_reported(claims: Path, out: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "three", [{"text": "a film", "label": number % 3} for number in range(12)])
    recorder = Recorder()
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path, "out": out})
    run(tiny.job("bert", "three"), RunOptions(claims=claim_paths), recorder)
    reason = "the classes of the model are not those of the data"
    assert recorder.has_message(f"newly initialized, because {reason}: classifier.bias, classifier.weight")
    assert not recorder.has_message("does not contain them")


def edited(claims: Path, folder: Path, **changes: Any) -> tiny.ClaimPaths:
    """Where the model `bert` has these changes in its config, and the weights that it had."""
    shutil.copytree(claims / "models" / "bert", folder / "models" / "bert")
    path = folder / "models" / "bert" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return tiny.ClaimPaths(claims, {"models": folder / "models", "data": folder, "out": folder})


CLASSES = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 40}, r"bert\.embeddings\.word_embeddings\.weight has shape \[15, 16\] .* but \[40, 16\] in"),
        (CLASSES, r"classifier\.bias has shape \[2\] .* but \[3\] in its config\.json \(and 1 more do not fit\)"),
    ],
)
def test_weights_that_do_not_match_their_config_are_rejected(
    changes: dict[str, Any], message: str, claims: Path, tmp_path: Path
) -> None:
    labels = sorted(CLASSES["label2id"]) if "id2label" in changes else [0, 1, 2]
    tiny.write_rows(tmp_path / "rows", [{"text": "a film", "label": labels[number % 3]} for number in range(12)])
    with pytest.raises(UserError, match=rf"model\.source: pvc://models/bert: {message}"):
        run(tiny.job("bert", "rows"), RunOptions(claims=edited(claims, tmp_path, **changes)), Recorder())


@pytest.mark.parametrize("held_out", [{"validation": {"fraction": 0.3}}, {"fold": {"index": 1, "count": 4}}])
def test_class_that_occurs_only_in_validation_is_a_class(
    held_out: dict[str, Any], claims: Path, tmp_path: Path
) -> None:
    job = tiny.job("bert", "rows", data=held_out)
    rows = [{"text": "a film", "label": ("bad", "good")[number % 2]} for number in range(24)]
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path, "out": tmp_path})
    tiny.write_rows(tmp_path / "rows", rows)
    validation = prepare(job, claim_paths).validation
    assert validation is not None
    rows[validation.rows[0]]["label"] = "rare"
    tiny.write_rows(tmp_path / "rows", rows)
    prepared = prepare(job, claim_paths)
    assert "rare" not in prepared.train.values("label")
    assert list(prepared.config.id2label.values()) == ["bad", "good", "rare"]
    recorder = Recorder()
    run(job, RunOptions(claims=claim_paths), recorder)
    assert math.isfinite(recorder.evaluations[-1].metrics["eval/loss"])


def max_tokens(
    folder: Path, config: PretrainedConfig, model_max_length: int | None, max_length: int | None = None
) -> int:
    """The maximum text length with a tokenizer that has this limit."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.model_max_length = model_max_length or 10**30
    tokenizer.save_pretrained(folder)
    pretrained = model_loader.PretrainedSource("pvc://models/llm", str(folder), None)
    return model_loader.load_processors(pretrained, CausalLM(("text",)), config, max_length).max_tokens


def test_maximum_text_length_is_the_smaller_limit_of_model_and_tokenizer(tmp_path: Path) -> None:
    long = LlamaConfig(max_position_embeddings=131_072)
    assert max_tokens(tmp_path, long, None) == 131_072
    assert max_tokens(tmp_path, long, 200_000) == 131_072
    assert max_tokens(tmp_path, MambaConfig(), 200_000) == 200_000
    with pytest.raises(UserError, match=r"data\.maxLength: 131073 is more than the model's maximum of 131072 tokens"):
        max_tokens(tmp_path, long, None, 131_073)


def test_maximum_text_length_without_limits(tmp_path: Path) -> None:
    assert max_tokens(tmp_path, MambaConfig(), None) == 512
    assert max_tokens(tmp_path, MambaConfig(), None, 4096) == 4096


@pytest.fixture
def resnet(claims: Path, tmp_path: Path, out: Path) -> tiny.ClaimPaths:
    """A model with batch normalization."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "models" / "resnet")
    size = {"height": tiny.SIZE, "width": tiny.SIZE}
    ViTImageProcessor(size=size).save_pretrained(tmp_path / "models" / "resnet")
    return tiny.ClaimPaths(claims, {"models": tmp_path / "models", "out": out})


def running_statistics(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if "running_" in name or "num_batches" in name}


FAST = {"optimizer": {"type": "SGD", "learningRate": 1e-2}}
HEAD = {"name": "head", "parameters": ["classifier.*"], **FAST}
BODY = {"name": "body", "parameters": ["resnet.*"]}


@pytest.mark.parametrize(
    ("spec", "changed_at"),
    [
        ({"modules": [HEAD, {**BODY, "frozen": True}]}, None),
        ({"modules": [HEAD], "unmatched": "Freeze"}, None),
        ({"modules": [HEAD, {**BODY, **FAST, "freeze": {"untilStep": 3}}]}, 4),
        ({"modules": [HEAD, {**BODY, **FAST}]}, 1),
    ],
)
def test_running_statistics_of_frozen_modules_are_frozen(
    spec: dict[str, Any], changed_at: int | None, resnet: tiny.ClaimPaths, out: Path, keep_checkpoints: dict[str, Any]
) -> None:
    start = running_statistics(load_file(resnet.folder("models") / "resnet" / "model.safetensors"))
    job = tiny.job("resnet", "colours", data={"validation": {"fraction": 0.3}}, checkpoint=keep_checkpoints, **spec)
    run(job, RunOptions(claims=resnet), Recorder())
    for step in range(1, 7):
        now = running_statistics(load_checkpoint(out, step, "weights"))
        changed = [name for name in start if not torch.equal(start[name], now[name])]
        assert bool(changed) == (changed_at is not None and step >= changed_at), step


def test_running_statistics_without_weights_are_frozen_with_the_parent_module() -> None:
    block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2, affine=False), torch.nn.Dropout())
    model = torch.nn.ModuleDict({"frozen": block.requires_grad_(False), "head": torch.nn.Linear(2, 2)})
    set_train_mode(model)
    assert [layer.training for layer in block] == [True, False, True]
    block[0].bias.requires_grad_(True)
    set_train_mode(model)
    assert block[1].training


def test_truncated_texts_are_reported(claims: Path, out: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "long", [{"text": "the film " * (n % 3 * 5 + 1), "label": n % 2} for n in range(12)])
    recorder = Recorder()
    claim_paths = tiny.ClaimPaths(claims, {"data": tmp_path, "out": out})
    run(tiny.job("bert", "long", data={"maxLength": 8}), RunOptions(claims=claim_paths), recorder)
    assert recorder.has_message("truncating 8 of 12 texts to 8 tokens")


def test_plan_needs_no_weights(claims: Path, out: Path, tmp_path: Path) -> None:
    bare = tmp_path / "models" / "dual"
    bare.mkdir(parents=True)
    (bare / "config.json").write_bytes((claims / "models" / "dual" / "config.json").read_bytes())
    claim_paths = tiny.ClaimPaths(claims, {"models": bare.parent, "out": out})
    without = prepare(tiny.contrastive_job(), claim_paths).plan
    assert without == prepare(tiny.contrastive_job(), tiny.claim_paths(claims, out)).plan
    assert sum(module.numel for module in without.modules) == 3272 + 2920 + 1
    assert not list(out.iterdir())


def test_processors_are_exported(claims: Path, out: Path) -> None:
    go(tiny.contrastive_job(), claims, out)
    AutoTokenizer.from_pretrained(out / "result")
    AutoImageProcessor.from_pretrained(out / "result")


def test_metrics_that_are_never_finite_are_reported_and_never_the_best(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassificationMetrics, "compute", lambda _: {"eval/loss": math.nan, "eval/accuracy": math.nan})
    evaluation = {"every": {"steps": 1}, "earlyStopping": {"patience": 3}}
    tiny.write_rows(out / "more-reviews", tiny.reviews(9))
    data = {"validation": {"fraction": 0.3}, "test": {"source": "pvc://out/more-reviews"}}
    recorder, report = go(tiny.job("bert", "reviews", evaluation=evaluation, data=data), claims, out)
    assert [record.best for record in recorder.evaluations] == [False] * 4
    assert recorder.has_message("evaluation at step 0: eval/loss is nan, eval/accuracy is nan")
    assert recorder.has_message("stopped early after step 3: eval/accuracy was never finite")
    assert recorder.has_message("saving the weights of step 3, the last: eval/accuracy was never finite")
    assert recorder.has_message("test set: test/loss is nan, test/accuracy is nan")
    assert report.best is None
    assert not [metric for metric in report.metrics if metric.name.startswith(("eval/", "test/"))]
    text = (out / "result" / "run.json").read_text()
    assert "NaN" not in text
    metrics = json.loads(text)["metrics"]
    assert metrics["best"] is None
    assert metrics["last"] == {"step": 3, "eval/loss": None, "eval/accuracy": None}
    assert "NaN" not in (out / "result" / "metrics.jsonl").read_text()
