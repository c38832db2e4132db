"""Predictions of a row are the same alone and in a batch, for many architectures and all ways of padding."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from finetune_trainer.data import Sample
from finetune_trainer.errors import UserError
from finetune_trainer.tasks import Processors, Task
from finetune_trainer.tasks.causal_lm import CausalLM
from finetune_trainer.tasks.contrastive import Contrastive
from finetune_trainer.tasks.image_classification import ImageClassification
from finetune_trainer.tasks.sequence_classification import SequenceClassification
from finetune_trainer.training.assembly import AssembledModel
from finetune_trainer.training.device import DeviceConfig
from finetune_trainer.training.independence import (
    EqualLengthBatches,
    IndependenceCheck,
    ensure_independent_predictions,
)
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

CPU = DeviceConfig(torch.device("cpu"), None)
CLASSIFY = SequenceClassification({0: 0, 1: 1, 2: 2})
PAD, UNK, SEP = 0, 1, 3
TEXTS = [
    "good film",
    "a bad film",
    "a photo of something red",
    "the film",
    "red green blue good bad the a of photo film",
]
ROWS: list[Sample] = [{"text": text, "label": number % 3} for number, text in enumerate(TEXTS * 3 + TEXTS[:1])]

COMMON = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "embedding_size": 32,
    "max_position_embeddings": 32,
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_local_experts": 4,
    "attention_window": 8,
    "pad_token_id": PAD,
    "eos_token_id": SEP,
    "decoder_start_token_id": PAD,
    "bos_token_id": 2,
    "cls_token_id": 2,
    "sep_token_id": SEP,
}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "bloom": {"n_head": 4},
    "funnel": {"n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]},
    "xlnet": {"n_head": 4, "d_inner": 48, "n_layer": 2},
    "t5": {"num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
}
UNSUPPORTED = {"funnel": ("num_hidden_layers",), "xlnet": ("max_position_embeddings",)}
PADDED = (
    "albert",
    "bart",
    "bert",
    "bloom",
    "deberta-v2",
    "distilbert",
    "electra",
    "funnel",
    "gemma",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "llama",
    "longformer",
    "mistral",
    "mixtral",
    "modernbert",
    "mpnet",
    "openai-gpt",
    "opt",
    "phi",
    "qwen2",
    "roberta",
    "roformer",
    "squeezebert",
    "t5",
    "xlm",
    "xlm-roberta",
    "xlnet",
)
GROUPED = ("canine", "convbert", "fnet", "mobilebert", "nystromformer")
"""Architectures that read padding, whatever the attention mask says."""


def make_classifier(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    defaults = AutoConfig.for_model(kind)
    unsupported = UNSUPPORTED.get(kind, ())
    common = {name: value for name, value in COMMON.items() if hasattr(defaults, name) and name not in unsupported}
    config = AutoConfig.for_model(kind, **{**common, **OTHERS.get(kind, {}), "num_labels": 3, **changes})
    return sensitive(AutoModelForSequenceClassification.from_config(config))


def sensitive(model: Any) -> Any:
    """Large weights: those of a new model are so small that a difference hardly reaches the output."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.25)
    return model.eval()


def make_processors(side: str = "right", **changes: Any) -> Processors:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = side
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return Processors(tokenizer, None, 16)


def ensure(
    model: Any, task: Task, processors: Processors, rows: Sequence[Sample] = ROWS, micro_batch_size: int = 16
) -> tuple[Any, list[str]]:
    dataset: Any = rows

    def collate(samples: Sequence[Sample]) -> Any:
        return task.make_batch(samples, processors)

    check = IndependenceCheck(task, collate, dataset, CPU)
    assembled, notes = ensure_independent_predictions(
        AssembledModel(model, model, ()), task, processors, check, micro_batch_size
    )
    return assembled.forward, notes


def predict(model: Any, task: Task, processors: Processors, rows: Sequence[Sample], size: int) -> dict[str, Any]:
    with torch.no_grad():
        parts = [
            task.predict(model, task.make_batch(rows[first : first + size], processors))
            for first in range(0, len(rows), size)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in task.row_predictions}


def assert_independent(model: Any, task: Task, processors: Processors, rows: Sequence[Sample] = ROWS) -> None:
    alone, together = (predict(model, task, processors, rows, size) for size in (1, 16))
    for name, values in alone.items():
        torch.testing.assert_close(together[name], values, rtol=1e-5, atol=1e-5 * float(values.abs().max()))
        assert values.unique().numel() > 2, "the predictions differ between rows"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", PADDED)
def test_micro_batch_1_predicts_what_micro_batch_16_does(kind: str, side: str) -> None:
    model, processors = make_classifier(kind), make_processors(side)
    forward, _ = ensure(model, CLASSIFY, processors)
    assert forward is model, "padding is enough"
    assert_independent(forward, CLASSIFY, processors)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", GROUPED)
def test_model_that_reads_padding_is_called_with_texts_of_equal_length(kind: str, side: str) -> None:
    model, processors = make_classifier(kind), make_processors(side)
    forward, notes = ensure(model, CLASSIFY, processors)
    assert isinstance(forward, EqualLengthBatches)
    assert notes[0].startswith("calling the model once for each length of the texts in a batch: ")
    assert_independent(forward, CLASSIFY, processors)
    tokenizer = processors.tokenizer
    for row in ROWS[:5]:  # as a pipeline calls it
        inputs = tokenizer(row["text"], return_tensors="pt")
        inputs = inputs if kind != "fnet" else {"input_ids": inputs["input_ids"]}
        with torch.no_grad():
            expected = model(**inputs).logits
        torch.testing.assert_close(predict(forward, CLASSIFY, processors, [row], 1)["logits"], expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "mistral", "gpt_neo", "openai-gpt"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("config_pad", [None, 7, SEP])
def test_padding_token_of_the_config_becomes_that_of_the_tokenizer(kind: str, side: str, config_pad: Any) -> None:
    model, processors = make_classifier(kind, pad_token_id=config_pad), make_processors(side)
    forward, notes = ensure(model, CLASSIFY, processors)
    assert_independent(forward, CLASSIFY, processors)
    assert model.config.pad_token_id == PAD
    assert any(f"setting pad_token_id of the model from {config_pad} to 0" in note for note in notes)


def test_padding_token_that_positions_depend_on_is_left_alone() -> None:
    """The saved model would count positions from another start."""
    model, processors = make_classifier("roberta", pad_token_id=1, max_position_embeddings=40), make_processors("left")
    forward, notes = ensure(model, CLASSIFY, processors)
    assert_independent(forward, CLASSIFY, processors)
    assert model.config.pad_token_id == 1
    assert notes == ["padding texts on the right (padding_side of the tokenizer was left)"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_with_the_token_that_ends_each_text(kind: str) -> None:
    model = make_classifier(kind, pad_token_id=None)
    processors = make_processors(pad_token="[SEP]")
    forward, _ = ensure(model, CLASSIFY, processors)
    assert model.config.pad_token_id == SEP
    assert_independent(forward, CLASSIFY, processors)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_tokenizer_without_attention_mask(kind: str) -> None:
    model, processors = make_classifier(kind), make_processors(model_input_names=["input_ids"])
    forward, _ = ensure(model, CLASSIFY, processors)
    assert forward is model
    assert_independent(forward, CLASSIFY, processors)


def test_tokenizer_with_token_types() -> None:
    model = make_classifier("bert")
    processors = make_processors("left", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    forward, _ = ensure(model, CLASSIFY, processors)
    assert_independent(forward, CLASSIFY, processors)


def test_model_that_reads_the_last_position_is_padded_on_the_left() -> None:
    model, processors = make_classifier("xlnet"), make_processors("right")
    _, notes = ensure(model, CLASSIFY, processors)
    assert processors.tokenizer.padding_side == "left"
    assert notes == ["padding texts on the left (padding_side of the tokenizer was right)"]


def test_rows_of_one_length_are_compared_with_a_longer_one() -> None:
    model, processors = make_classifier("llama", pad_token_id=7), make_processors()
    ensure(model, CLASSIFY, processors, [{"text": "a film", "label": 0}] * 8)
    assert model.config.pad_token_id == PAD


class Unreadable(list[Sample]):
    """Rows of which the first ones cannot be read."""

    def __init__(self, rows: Sequence[Sample], count: int) -> None:
        super().__init__(rows)
        self.count = count

    def __getitem__(self, index: Any) -> Any:
        if index < self.count:
            raise UserError("data.train.source: cannot be decoded")
        return super().__getitem__(index)


@pytest.mark.parametrize("count", [1, len(ROWS)])
def test_row_that_cannot_be_read_is_left_to_training(count: int) -> None:
    model, processors = make_classifier("llama", pad_token_id=7), make_processors()
    ensure(model, CLASSIFY, processors, Unreadable(ROWS, count))
    assert (model.config.pad_token_id == PAD) is (count == 1), "the other rows are compared, if there are any"


def test_random_state_is_unchanged() -> None:
    model, processors = make_classifier("bert"), make_processors()
    before = torch.get_rng_state()
    ensure(model, CLASSIFY, processors)
    assert torch.equal(torch.get_rng_state(), before)


class Centered(nn.Module):
    """Subtracts the mean over the batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        if len(logits) > 1:
            logits = logits - logits.mean(dim=0)
        return SimpleNamespace(logits=logits)


def test_model_that_mixes_rows_is_refused_unless_rows_are_alone() -> None:
    model, processors = Centered(make_classifier("bert")), make_processors()
    equal: list[Sample] = [{"text": f"a {word}", "label": 0} for word in tiny.COLOURS] * 6
    with pytest.raises(UserError, match=r"model\.source: .*Centered.* depend on the other rows.*microBatchSize to 1"):
        ensure(model, CausalLike(), processors, equal)
    forward, notes = ensure(model, CausalLike(), processors, equal, micro_batch_size=1)
    assert (forward, notes) == (model, [])


class CausalLike(SequenceClassification):
    """A task that cannot group texts by length."""

    uses_tokenizer_padding = False

    def __init__(self) -> None:
        super().__init__({0: 0, 1: 1})


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom", "gpt_neo", "mamba", "qwen2", "mixtral"])
def test_language_models_predict_each_text_independently(kind: str, side: str) -> None:
    torch.manual_seed(0)
    defaults = AutoConfig.for_model(kind)
    common = {name: value for name, value in COMMON.items() if hasattr(defaults, name)}
    config = AutoConfig.for_model(kind, **{**common, **OTHERS.get(kind, {}), "vocab_size": 400})
    model = sensitive(AutoModelForCausalLM.from_config(config))
    tokenizer = tiny.byte_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, side
    processors = Processors(tokenizer, None, 24)
    task = CausalLM(("text",))
    rows: list[Sample] = [{"text": text} for text in TEXTS * 3]
    forward, notes = ensure(model, task, processors, rows)
    assert (forward, notes, tokenizer.padding_side) == (model, [], side), "generation pads on the left"
    assert_independent(forward, task, processors, rows)


@pytest.mark.parametrize("side", ["right", "left"])
def test_dual_encoder_embeds_each_pair_independently(side: str) -> None:
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(tiny.vision_config(), tiny.text_config())
    model = sensitive(VisionTextDualEncoderModel(config))
    processors = Processors(make_processors(side).tokenizer, ViTImageProcessor(size={"height": 8, "width": 8}), 16)
    images = [tiny_image(number) for number in range(len(ROWS))]
    rows = [{**row, "image": image} for row, image in zip(ROWS, images, strict=True)]
    task = Contrastive(has_labels=False)
    forward, _ = ensure(model, task, processors, rows)
    assert processors.tokenizer.padding_side == "right"
    assert_independent(forward, task, processors, rows)


def tiny_image(number: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (8, 8), (number * 9, 200 - number * 5, 40))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_image_classifiers_predict_each_image_independently(kind: str) -> None:
    torch.manual_seed(0)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    model = ViTForImageClassification(tiny.vision_config()) if kind == "vit" else ResNetForImageClassification(resnet)
    model.train()  # batch norm compares rows only in training
    processors = Processors(None, ViTImageProcessor(size={"height": 8, "width": 8}), None)
    rows = [{"image": tiny_image(number), "label": number % 3} for number in range(16)]
    task = ImageClassification({0: 0, 1: 1, 2: 2})
    forward, notes = ensure(model, task, processors, rows)
    assert (forward, notes) == (model, [])
    assert_independent(forward.eval(), task, processors, rows)


# Jobs --------------------------------------------------------------------------------------------------------------


def write_decoder(folder: Path, kind: str, side: str, config_pad: int | None) -> Path:
    make_classifier(kind, pad_token_id=config_pad, num_labels=2).save_pretrained(folder)
    make_processors(side).tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "side", "config_pad"),
    [("gpt2", "left", PAD), ("llama", "right", 7), ("opt", "left", 7), ("fnet", "right", PAD)],
)
def test_metrics_do_not_depend_on_the_micro_batch_and_hold_for_the_saved_model(
    kind: str, side: str, config_pad: int, tmp_path: Path
) -> None:
    write_decoder(tmp_path / "models" / "head", kind, side, config_pad)
    tiny.write_rows(tmp_path / "data" / "reviews", tiny.reviews(36))
    tiny.write_rows(tmp_path / "data" / "held-out", tiny.reviews(16))
    metrics = []
    for size in (1, 6):
        job = tiny.job(
            "head",
            "reviews",
            training={"batchSize": 6, "microBatchSize": size, "epochs": 1},
            data={"validation": {"source": "pvc://data/held-out"}},
            checkpoint={"keepBest": False},
            output={"destination": f"pvc://out/by-{size}"},
        )
        recorder = tiny.Recorder()
        run(job, RunOptions(claims=tiny.claim_paths(tmp_path, tmp_path / "out")), recorder)
        metrics.append([record.metrics for record in recorder.evaluations])
    (first, *_), (second, *_) = metrics  # dropout makes the next ones differ
    assert first == pytest.approx(second, rel=1e-5)
    result = tmp_path / "out" / "by-6"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(result), AutoTokenizer.from_pretrained(result)
    names = model.config.label2id
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    rows = tiny.reviews(16)
    answers = [names[classify(row["text"])[0]["label"]] == row["label"] for row in rows]
    assert sum(answers) / len(rows) == pytest.approx(metrics[1][-1]["eval/accuracy"])


def test_changes_of_padding_are_reported(tmp_path: Path) -> None:
    write_decoder(tmp_path / "models" / "head", "llama", "left", 7)
    tiny.write_rows(tmp_path / "data" / "reviews", tiny.reviews(24))
    recorder = tiny.Recorder()
    run(tiny.job("head", "reviews"), RunOptions(claims=tiny.claim_paths(tmp_path, tmp_path / "out")), recorder)
    assert recorder.has_message("padding texts on the right (padding_side of the tokenizer was left)")
    assert recorder.has_message("setting pad_token_id of the model from 7 to 0")
    assert json.loads((tmp_path / "out" / "result" / "config.json").read_text())["pad_token_id"] == PAD
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "result").padding_side == "right"
