"""Maximum lengths by architecture, activation checkpointing, determinism and quantized models."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import max_unpool1d
from transformers import AutoModel, MobileViTConfig, MobileViTForImageClassification, ViTConfig

from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.tasks.base import Processors
from finetune_trainer.tasks.image_classification import ImageClassification
from finetune_trainer.tasks.sequence_classification import SequenceClassification
from finetune_trainer.training.device import explain_nondeterminism
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

# Lengths

TEXT = {**tiny.SMALL, "vocab_size": 40, "max_position_embeddings": 34}
SEQ2SEQ = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 34,
}
LENGTHS: list[tuple[str, dict[str, Any], int]] = [
    ("Bert", TEXT, 34),
    ("Roberta", TEXT, 32),
    ("XLMRoberta", TEXT, 32),
    ("Camembert", TEXT, 32),
    ("Data2VecText", TEXT, 32),
    ("MPNet", TEXT, 32),
    ("Longformer", {**TEXT, "attention_window": 4}, 32),
    (
        "OPT",
        {**tiny.SMALL, "vocab_size": 40, "max_position_embeddings": 34, "ffn_dim": 24, "word_embed_proj_dim": 16},
        34,
    ),
    ("Bart", SEQ2SEQ, 34),
    ("MBart", SEQ2SEQ, 34),
    ("GPT2", {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 34}, 34),
    (
        "DistilBert",
        {"vocab_size": 40, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 34},
        34,
    ),
]


@pytest.mark.parametrize(("family", "fields", "expected"), LENGTHS, ids=[family for family, *_ in LENGTHS])
def test_longest_text_of_an_architecture(family: str, fields: dict[str, Any], expected: int) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**fields)).eval()
    length = model_loader.count_positions(model)
    assert length == expected
    inputs = torch.randint(5, 40, (1, length + 1))
    model(input_ids=inputs[:, :length], attention_mask=torch.ones(1, length))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=inputs, attention_mask=torch.ones(1, length + 1))


def test_image_positions_do_not_limit_texts() -> None:
    vision = {**tiny.SMALL, "image_size": 8, "patch_size": 4}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8))
    assert model_loader.count_positions(model) == 34


def test_rotary_positions_are_limited_by_the_config(tmp_path: Path) -> None:
    tiny.write_language_model(tmp_path)
    pretrained = model_loader.PretrainedSource("pvc://models/x", str(tmp_path), None)
    config = model_loader.load_config(pretrained)
    assert model_loader.count_positions(model_loader.build_meta_model(AutoModel, config)) is None
    processors = model_loader.load_processors(
        pretrained, transformers_task(transformers.AutoModelForCausalLM), config, None
    )
    assert processors.max_length == 64


def transformers_task(auto_class: Any) -> Any:
    task = copy.copy(SequenceClassification({0: 0, 1: 1}))
    object.__setattr__(task, "auto_class", auto_class)
    return task


@pytest.mark.parametrize(("max_length", "expected"), [(None, 32), (32, 32), (33, None)])
def test_max_length_of_roberta(max_length: int | None, expected: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**TEXT)
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    pretrained = model_loader.PretrainedSource("pvc://models/x", str(tmp_path), None)
    task = SequenceClassification({0: 0, 1: 1})
    if expected is None:
        with pytest.raises(UserError, match=r"data\.maxLength: 33 is more than the model's maximum of 32 tokens"):
            model_loader.load_processors(pretrained, task, config, max_length)
        return
    assert model_loader.load_processors(pretrained, task, config, max_length).max_length == expected


# Activation checkpointing


def train_step(model: nn.Module, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a step; dropout draws the same values each time."""
    torch.manual_seed(1)
    model.train()
    loss = model(pixels).logits.square().sum()
    torch.autograd.backward(loss)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), gradients


def mobile_vit() -> nn.Module:
    torch.manual_seed(0)
    config = MobileViTConfig(
        image_size=32,
        patch_size=2,
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        hidden_dropout_prob=0.3,
        classifier_dropout_prob=0.3,
    )
    return MobileViTForImageClassification(config)


def test_activation_checkpointing_changes_neither_gradients_nor_running_statistics() -> None:
    plain, task = mobile_vit(), ImageClassification({0: 0, 1: 1})
    checkpointed = copy.deepcopy(plain)
    model_loader.configure_model(checkpointed, task, Processors(None, None, None), True)  # type: ignore[arg-type]
    pixels = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        loss, gradients = train_step(plain, pixels)
        other_loss, other_gradients = train_step(checkpointed, pixels)
        torch.testing.assert_close(other_loss, loss)
        assert other_gradients.keys() == gradients.keys()
        for name in gradients:
            torch.testing.assert_close(other_gradients[name], gradients[name], msg=name)
    buffers = dict(checkpointed.named_buffers())
    assert any("running_mean" in name for name in buffers)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, msg=name)


# Determinism


class Unpooling(nn.Module):
    """A module with an operation that has no deterministic implementation, on a CPU either."""

    def forward(self, values: Tensor) -> Tensor:
        indices = torch.arange(values.shape[-1]).expand(values.shape)
        return max_unpool1d(values[None], indices[None], 1)[0]


def test_operation_without_a_deterministic_implementation(
    claims: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = SequenceClassification.loss
    monkeypatch.setattr(
        SequenceClassification, "loss", lambda *arguments: Unpooling()(loss(*arguments).expand(1, 4)).mean()
    )
    job = tiny.job("bert", "reviews", training={"deterministic": True})
    recorder = tiny.Recorder()
    with pytest.raises(UserError, match=r"training\.deterministic: true, but the model uses the operation max_unpool"):
        run(job, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    assert recorder.report is not None
    assert recorder.report.reason == "InvalidJob"


def test_cublas_needs_its_workspace_setting() -> None:
    error = RuntimeError(
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ..., but this "
        "operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2."
    )
    assert "CUBLAS_WORKSPACE_CONFIG" in str(explain_nondeterminism(error))


def test_other_errors_are_not_about_determinism() -> None:
    assert explain_nondeterminism(RuntimeError("shapes do not match")) is None


# Quantized models


def test_quantized_model(tmp_path: Path) -> None:
    config = ViTConfig().to_dict() | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its weights are quantized \(fp8, quantization_config in config\.json\)"):
        model_loader.load_config(model_loader.PretrainedSource("pvc://models/x", str(tmp_path), None))
