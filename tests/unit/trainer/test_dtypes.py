"""Dtypes of weights: in memory by module and precision, and in the output, whose metrics are the final ones."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, ResNetConfig, ResNetForImageClassification

from finetune_trainer.planning import model_loader
from finetune_trainer.planning.prepare import prepare
from finetune_trainer.training.assembly import AssembledModel, assemble
from finetune_trainer.training.checkpoint import set_model_state_dict
from finetune_trainer.training.device import DeviceConfig, select_device
from finetune_trainer.training.dtypes import (
    OutputDtypes,
    cast_weights,
    choose_output_dtypes,
    round_weights,
    set_frozen_dtypes,
)
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OPTIMIZER = {"type": "AdamW", "learningRate": 1e-2}
BODY, HEAD = ["bert.*"], ["classifier.*"]
FROZEN_BODY = [
    {"name": "body", "parameters": BODY, "frozen": True},
    {"name": "head", "parameters": HEAD, "optimizer": OPTIMIZER},
]
LATE_BODY = [
    {"name": "body", "parameters": BODY, "optimizer": OPTIMIZER, "freeze": {"untilEpoch": 1}},
    {"name": "head", "parameters": HEAD, "optimizer": OPTIMIZER},
]
EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def folder(claims: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a BERT classifier whose weights have this dtype, with other dtypes for some names."""

    def write(dtype: torch.dtype, others: dict[str, torch.dtype] | None = None) -> Path:
        model = tiny.write_classifier(tmp_path / "models" / "bert")
        tensors = {
            name: tensor.to((others or {}).get(name, dtype))
            for name, tensor in load_file(model / "model.safetensors").items()
        }
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "data").symlink_to(claims / "data")
        return tmp_path

    return write


def assemble_job(claims: Path, **spec: Any) -> AssembledModel:
    job = tiny.job("bert", "reviews", **spec)
    prepared = prepare(job, tiny.claim_paths(claims, claims))
    processors = model_loader.load_processors(prepared.pretrained, prepared.task, prepared.config, None)
    return assemble(prepared, processors, select_device(prepared.plan.job.spec))[0]


def dtypes(model: nn.Module, prefix: str = "") -> set[torch.dtype]:
    """The dtypes of all matrices."""
    parameters = [parameter for name, parameter in model.named_parameters() if name.startswith(prefix)]
    return {parameter.dtype for parameter in parameters if parameter.ndim > 1}


# In memory


@pytest.mark.parametrize(
    ("source", "precision", "modules", "body"),
    [
        (BF16, "BF16", FROZEN_BODY, BF16),
        (FP16, "FP16", FROZEN_BODY, FP16),
        (BF16, "FP32", FROZEN_BODY, FP32),
        (FP32, "BF16", FROZEN_BODY, FP32),
        (BF16, "BF16", LATE_BODY, FP32),
    ],
)
def test_dtypes_in_memory(
    source: torch.dtype, precision: str, modules: Any, body: torch.dtype, folder: Callable[..., Path]
) -> None:
    model = assemble_job(folder(source), training={"precision": precision}, modules=modules)
    assert dtypes(model.base, "bert.") == {body}
    assert dtypes(model.base, "classifier.") == {FP32}


def test_unmatched_parameters_keep_their_dtype(folder: Callable[..., Path]) -> None:
    fields = {"unmatched": "Freeze", "modules": FROZEN_BODY[1:], "training": {"precision": "BF16"}}
    assert dtypes(assemble_job(folder(BF16), **fields).base, "bert.") == {BF16}


def test_mixed_dtypes_of_a_file_are_kept(folder: Callable[..., Path]) -> None:
    query = "bert.encoder.layer.0.attention.self.query.weight"
    claims = folder(BF16, {EMBEDDINGS: FP32, query: FP16})
    model = assemble_job(claims, training={"precision": "BF16"}, modules=FROZEN_BODY)
    found = dict(model.base.named_parameters())
    assert found[EMBEDDINGS].dtype == FP32
    assert found[query].dtype == FP16, "although the computation is in BF16"
    assert found["bert.pooler.dense.weight"].dtype == BF16


def test_batch_norm_stays_in_fp32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    sources = dict.fromkeys(model.state_dict(), BF16)
    set_frozen_dtypes(model, (), sources, DeviceConfig(torch.device("cpu"), BF16))
    assert (model[0].weight.dtype, model[1].weight.dtype, model[1].running_mean.dtype) == (BF16, FP32, FP32)


def test_weights_trained_by_an_earlier_attempt_are_restored_in_fp32() -> None:
    model, value = nn.Linear(2, 2).bfloat16(), torch.full((2, 2), 1.001)
    set_model_state_dict(model, {"weight": value, "bias": torch.zeros(2)}, {})
    assert torch.equal(model.weight, value)


# In the output


def run_job(claims: Path, out: Path, **spec: Any) -> tuple[tiny.Recorder, dict[str, torch.Tensor], dict[str, Any]]:
    recorder = tiny.Recorder()
    fields = tiny.merged({"modules": FROZEN_BODY, "data": {"validation": {"fraction": 0.4}}}, spec)
    run(tiny.job("bert", "reviews", **fields), RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    result = out / "result"
    return recorder, load_file(result / "model.safetensors"), json.loads((result / "config.json").read_text())


@pytest.mark.parametrize(
    ("source", "chosen", "saved"),
    [(BF16, None, BF16), (FP16, None, FP16), (FP32, None, FP32), (BF16, "FP32", FP32), (FP32, "FP16", FP16)],
)
@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_dtype_of_the_output(
    source: torch.dtype, chosen: str | None, saved: torch.dtype, precision: str, folder: Callable[..., Path], out: Path
) -> None:
    output = {"dtype": chosen} if chosen else {}
    _, tensors, config = run_job(folder(source), out, output=output, training={"precision": precision})
    assert {tensor.dtype for tensor in tensors.values()} == {saved}
    assert config["dtype"] == str(saved).removeprefix("torch.")


def test_mixed_dtypes_in_the_output(folder: Callable[..., Path], out: Path) -> None:
    others = {EMBEDDINGS: FP32, "classifier.weight": FP32, "classifier.bias": FP16}
    _, tensors, config = run_job(folder(BF16, others), out)
    assert {name: tensors[name].dtype for name in others} == others
    assert tensors["bert.pooler.dense.weight"].dtype == BF16
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("keep_best", [True, False])
def test_final_metrics_are_those_of_the_saved_weights(folder: Callable[..., Path], out: Path, keep_best: bool) -> None:
    claims = folder(BF16)
    recorder, _, _ = run_job(claims, out, checkpoint={"keepBest": keep_best}, training={"epochs": 3})
    metrics = json.loads((out / "result" / "run.json").read_text())["metrics"]
    selected = metrics["best" if keep_best else "last"]
    assert metrics["final"]["step"] == selected["step"]
    assert metrics["final"]["eval/loss"] != selected["eval/loss"]
    assert recorder.has_message("eval/accuracy of the weights as they are saved")
    saved = AutoModelForSequenceClassification.from_pretrained(out / "result", dtype=torch.float32).eval()
    prepared = prepare(
        tiny.job("bert", "reviews", data={"validation": {"fraction": 0.4}}), tiny.claim_paths(claims, claims)
    )
    processors = model_loader.load_processors(prepared.pretrained, prepared.task, prepared.config, None)
    assert prepared.validation is not None
    samples = [prepared.validation[index] for index in range(len(prepared.validation))]
    with torch.no_grad():
        batch = prepared.task.collate(prepared.task.encode(samples, processors), processors)
        loss = float(prepared.task.loss(saved, batch)) / len(samples)
    assert loss == pytest.approx(metrics["final"]["eval/loss"], rel=1e-5)


def test_final_metrics_without_rounding_are_the_selected_ones(folder: Callable[..., Path], out: Path) -> None:
    run_job(folder(FP32), out)
    metrics = json.loads((out / "result" / "run.json").read_text())["metrics"]
    assert metrics["final"] == metrics["best"]


def test_buffers_keep_the_dtype_of_the_source() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    model = ResNetForImageClassification(config)
    sources = {name: FP32 if "running" in name else BF16 for name in model.state_dict()}
    cast_weights(model, choose_output_dtypes(model, sources, None))
    saved = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert {dtype for name, dtype in saved.items() if "running" in name} == {FP32}
    assert {dtype for name, dtype in saved.items() if name.endswith(("weight", "bias"))} == {BF16}
    assert {dtype for name, dtype in saved.items() if name.endswith("tracked")} == {torch.int64}


def test_new_weights_get_the_dtype_of_most_others() -> None:
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "head": nn.Linear(8, 2)})
    sources = {"body.weight": BF16, "body.bias": BF16, "norm.weight": FP32, "norm.bias": FP32}
    output = choose_output_dtypes(model, sources, None)
    assert output.by_name["head.weight"] == BF16
    assert output.config == BF16


def test_values_above_the_maximum_of_fp16_are_kept() -> None:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, 1e5)
    output = OutputDtypes({"weight": FP16, "bias": FP16}, FP16)
    round_weights(model, output)
    assert cast_weights(model, output) == ["weight"]
    assert model.weight.dtype == FP32
    assert bool((model.weight == 1e5).all())


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4, bias=False), "second": nn.Linear(4, 4, bias=False)})
    model["second"].weight = model["first"].weight
    cast_weights(model, choose_output_dtypes(model, dict.fromkeys(model.state_dict(), BF16), None))
    assert model["second"].weight is model["first"].weight
    assert model["second"].weight.dtype == BF16


# All combinations compute

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {**tiny.SMALL, "vocab_size": 20, "max_position_embeddings": 16},
    "LlamaForCausalLM": {**tiny.SMALL, "vocab_size": 20},
    "GPT2LMHeadModel": {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "MixtralForCausalLM": {**tiny.SMALL, "vocab_size": 20, "num_key_value_heads": 2, "num_local_experts": 4},
    "ViTForImageClassification": {**tiny.SMALL, "image_size": 8, "patch_size": 4},
    "ResNetForImageClassification": {
        "embedding_size": 8,
        "hidden_sizes": [8],
        "depths": [1],
        "layer_type": "basic",
    },
    "ConvNextForImageClassification": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "SiglipForImageClassification": {"vision_config": {**tiny.SMALL, "image_size": 8, "patch_size": 4}},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", [BF16, FP16])
@pytest.mark.parametrize("computation", [BF16, FP16])
def test_frozen_weights_in_16_bit_give_the_same_results(
    architecture: str, source: torch.dtype, computation: torch.dtype
) -> None:
    torch.manual_seed(0)
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(**ARCHITECTURES[architecture])).to(source).float().eval()
    inputs = torch.randn(2, 3, 8, 8) if "Image" in architecture else torch.randint(4, 20, (2, 6))
    device = DeviceConfig(torch.device("cpu"), computation)

    def logits() -> torch.Tensor:
        with device.autocast():
            found: torch.Tensor = model(inputs).logits.float()
        return found

    names = [name for name, _ in model.named_parameters()]
    expected = logits().detach()
    for trainable in (names[-1:], names[:1], names[::2], names[1::2]):
        other = copy.deepcopy(model).requires_grad_(False)
        set_frozen_dtypes(other, trainable, dict.fromkeys(names, source), device)
        for name in trainable:
            other.get_parameter(name).requires_grad_(True)
        with device.autocast():
            actual = other(inputs).logits.float()
        torch.testing.assert_close(actual.detach(), expected, rtol=0.05, atol=0.05)
        actual.sum().backward()
