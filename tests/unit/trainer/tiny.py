"""Real models and datasets, so small that a complete run takes about a second."""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from finetune_api import FineTuneJob
from finetune_api.status import Report
from finetune_trainer.callbacks import Callback, CheckpointRecord, EvaluationRecord, StepRecord, TestRecord
from finetune_trainer.claims import ClaimPaths
from finetune_trainer.plan import RunPlan

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *COLOURS, "a", "photo", "of", "something", "the", "good", "bad", "film"]
SIZE = 8
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def text_config(**changes: Any) -> BertConfig:
    return BertConfig(**{**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16, **changes})


def vision_config() -> ViTConfig:
    return ViTConfig(**SMALL, image_size=SIZE, patch_size=4, hidden_dropout_prob=0.1)


def write_dual_encoder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config(), text_config(), projection_dim=8)
    return _write(VisionTextDualEncoderModel(config), folder, images=True)


def write_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 3},
        vision_config={**SMALL, "image_size": SIZE, "patch_size": 4},
        projection_dim=8,
    )
    return _write(CLIPModel(config), folder, images=True)


def write_classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    return _write(BertForSequenceClassification(text_config(num_labels=2)), folder, images=False)


def _write(model: Any, folder: Path, images: bool) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if images:
        ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ANSWERS = {"sky": "blue", "grass": "green", "blood": "red"}


def byte_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE like that of GPT-2, trained on the texts of the tiny models; it has no padding token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END_OF_TEXT, START_OF_TURN, END_OF_TURN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(
        [f"What colour is the {it}? The {it} is {colour}." for it, colour in ANSWERS.items()], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, chat_template=chat_template)


def write_language_model(folder: Path, chat_template: str | None = CHATML, *, tied: bool = False) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(chat_template)
    config = LlamaConfig(
        **{**SMALL, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_image_classifier(folder: Path, names: Sequence[str] = ("LABEL_0", "LABEL_1", "LABEL_2")) -> Path:
    torch.manual_seed(0)
    config = vision_config()
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def write_siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_size": 16},
        vision_config={**SMALL, "image_size": SIZE, "patch_size": 4},
    )
    return _write(SiglipModel(config), folder, images=True)


def completions(count: int) -> list[dict[str, Any]]:
    """Questions with their answers."""
    known = list(ANSWERS.items())
    pairs = [known[number % len(known)] for number in range(count)]
    return [{"prompt": f"What colour is the {it}?", "completion": f" The {it} is {colour}."} for it, colour in pairs]


def chats(count: int) -> list[dict[str, Any]]:
    """The same questions and answers as conversations."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"].strip()},
            ]
        }
        for row in completions(count)
    ]


def texts(count: int) -> list[dict[str, Any]]:
    """The same questions and answers as plain text."""
    return [{"text": row["prompt"] + row["completion"]} for row in completions(count)]


def png(colour: Sequence[int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), tuple(colour)).save(buffer, format="PNG")
    return buffer.getvalue()


def captioned(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Images of a single color each, with a caption that names it."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label, (name, colour) = number % 3, list(COLOURS.items())[number % 3]
        noisy = [min(255, max(0, part + chance.randint(-30, 30))) for part in colour]
        caption = chance.choice(["a photo of something {}", "the {}", "{}"]).format(name)
        rows.append({"image": {"bytes": png(noisy), "path": None}, "text": caption, "label": label})
    return rows


def reviews(count: int) -> list[dict[str, Any]]:
    return [
        {"text": f"a {'good' if number % 2 else 'bad'} film" + " of something" * (number % 3), "label": number % 2}
        for number in range(count)
    ]


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "part-0.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)
    return folder


TWO_MODULES: list[dict[str, Any]] = [
    {
        "name": "visual",
        "parameters": ["vision_model.*", "visual_projection.*"],
        "optimizer": {"type": "AdamW", "learningRate": 1e-2},
        "schedule": [{"type": "Warmup", "steps": 2}, {"type": "CosineAnnealing"}],
        "clipGradNorm": 1.0,
    },
    {
        "name": "textual",
        "parameters": ["text_model.*", "text_projection.*"],
        "optimizer": {"type": "RMSprop", "learningRate": 1e-4},
        "schedule": [{"type": "Constant"}],
        "regularization": {"l1": 1e-6},
        "freeze": {"untilEpoch": 1},
    },
    {"name": "temperature", "parameters": ["logit_scale"], "frozen": True},
]


def job(model_name: str, data_name: str, *, name: str = "tiny", uid: str | None = None, **spec: Any) -> FineTuneJob:
    """A job on the claims `models` and `data`; nested fields are merged."""
    base: dict[str, Any] = {
        "model": {"source": f"pvc://models/{model_name}"},
        "data": {"train": {"source": f"pvc://data/{data_name}"}, "workers": 0},
        "training": {"batchSize": 6, "epochs": 2},
        "output": {"destination": "pvc://out/result"},
        "resources": {"gpusPerNode": 0},
    }
    metadata = {"name": name} | ({"uid": uid} if uid else {})
    return FineTuneJob.model_validate({"metadata": metadata, "spec": merged(base, spec)})


def merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def contrastive_job(**changes: Any) -> FineTuneJob:
    """Two modules with two optimizers, on colored squares."""
    base = {"data": {"validation": {"fraction": 0.3}}, "modules": TWO_MODULES}
    return job("dual", "colours", **merged(base, changes))


def claim_paths(claims: Path, out: Path) -> ClaimPaths:
    return ClaimPaths(claims, {"out": out})


class Recorder(Callback):
    """Records all events."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.plan: RunPlan | None = None
        self.resumed_step = -1
        self.steps: list[StepRecord] = []
        self.evaluations: list[EvaluationRecord] = []
        self.tests: list[TestRecord] = []
        self.checkpoints: list[CheckpointRecord] = []
        self.report: Report | None = None
        self.closed = 0

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_train_begin(self, plan: RunPlan, resumed_step: int) -> None:
        self.plan, self.resumed_step = plan, resumed_step

    def on_step_end(self, record: StepRecord) -> None:
        self.steps.append(record)

    def on_evaluate(self, record: EvaluationRecord) -> None:
        self.evaluations.append(record)

    def on_test(self, record: TestRecord) -> None:
        self.tests.append(record)

    def on_save(self, record: CheckpointRecord) -> None:
        self.checkpoints.append(record)

    def on_run_end(self, report: Report) -> None:
        self.report = report

    def close(self) -> None:
        self.closed += 1

    def has_message(self, text: str) -> bool:
        return any(text in message for message in self.messages)


class AfterStep(Recorder):
    """Calls a function after a step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        super().__init__()
        self.step, self.action = step, action

    def on_step_end(self, record: StepRecord) -> None:
        super().on_step_end(record)
        if record.step == self.step:
            self.action()
