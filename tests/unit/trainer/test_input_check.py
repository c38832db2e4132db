"""What a model does not take is found before its weights are loaded, and named with its row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from finetune_trainer.data import Sample
from finetune_trainer.errors import UserError
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

EOS = tiny.WORDS.index("[SEP]")


def run_error(folder: Path, rows: Sequence[Sample], **spec: Any) -> str:
    """The error of a run of model `m` on these rows."""
    with pytest.raises(UserError) as raised:
        run_model(folder, rows, **spec)
    return str(raised.value)


def run_model(folder: Path, rows: Sequence[Sample], **spec: Any) -> tiny.Recorder:
    tiny.write_rows(folder / "data" / "rows", rows)
    callback = tiny.Recorder()
    claims = tiny.ClaimPaths(folder, {name: folder / name for name in ("models", "data", "out")})
    (folder / "out").mkdir(exist_ok=True)
    run(tiny.job("m", "rows", training={"batchSize": 2, "epochs": 1}, **spec), RunOptions(claims=claims), callback)
    return callback


def write_llama(folder: Path, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**tiny.SMALL, vocab_size=vocab_size, max_position_embeddings=64, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder / "models" / "m")
    tokenizer.save_pretrained(folder / "models" / "m")


@pytest.mark.parametrize("on_bad_row", ["Fail", "Skip"])
def test_token_beyond_the_embedding_is_named_with_its_row(tmp_path: Path, on_bad_row: str) -> None:
    tokenizer = tiny.byte_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    write_llama(tmp_path, tokenizer, size)
    rows = [*tiny.texts(4), {"text": "a <new> sky"}]
    message = run_error(tmp_path, rows, data={"onBadRow": on_bad_row})
    assert f"row 4: its token '<new>' has id {size}, but the model's embedding has {size} rows" in message
    assert "resize_token_embeddings" in message
    assert run_model(tmp_path, tiny.texts(4)).steps, "a token that no row has does no harm"


def test_token_beyond_max_length_does_no_harm(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    write_llama(tmp_path, tokenizer, len(tokenizer))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "models" / "m")
    rows = [*tiny.texts(3), {"text": "What colour is the sky?" * 9 + "<new>"}]
    assert run_model(tmp_path, rows, data={"maxLength": 8}).steps


def test_padding_token_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    write_llama(tmp_path, tokenizer, size)
    assert f"padding token '[PAD]' has id {size}, but the model's" in run_error(tmp_path, tiny.texts(4))


def write_bart(folder: Path, eos_token_id: int) -> None:
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = BartConfig(
        vocab_size=len(tiny.WORDS), d_model=8, max_position_embeddings=16, **sizes, **ffn, num_labels=2,
        pad_token_id=0, bos_token_id=2, eos_token_id=eos_token_id, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    BartForSequenceClassification(config).save_pretrained(folder / "models" / "m")
    tiny.tokenizer().save_pretrained(folder / "models" / "m")


def test_classifier_that_reads_the_end_of_text_token(tmp_path: Path) -> None:
    write_bart(tmp_path, 1)
    message = run_error(tmp_path, tiny.reviews(4))
    assert "reads a text at its end-of-text token (eos_token_id 1 in its config)" in message
    write_bart(tmp_path, EOS)
    assert run_model(tmp_path, tiny.reviews(6)).steps


def test_text_with_the_token_that_the_model_reads_it_at_is_a_bad_row(tmp_path: Path) -> None:
    write_bart(tmp_path, EOS)
    rows = [*tiny.reviews(6), {"text": "good [SEP] film", "label": 1}]
    assert "row 6: the text contains '[SEP]', the end-of-text token" in run_error(tmp_path, rows)
    callback = run_model(tmp_path, rows, data={"onBadRow": "Skip"}, name="other", output={"destination": "pvc://out/b"})
    assert callback.has_message("skipping 1 bad row")


def test_text_encoder_needs_the_end_of_text_token_of_its_config(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tiny.SMALL, "vocab_size": len(tiny.WORDS), "max_position_embeddings": 16, "eos_token_id": 1},
        vision_config={**tiny.SMALL, "image_size": tiny.SIZE, "patch_size": 4},
    )
    CLIPModel(config).save_pretrained(tmp_path / "models" / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "models" / "m")
    ViTImageProcessor(size={"height": tiny.SIZE, "width": tiny.SIZE}).save_pretrained(tmp_path / "models" / "m")
    assert "eos_token_id 1 in its config" in run_error(tmp_path, tiny.captioned(4))


def test_image_of_another_size_is_named_with_its_row(tmp_path: Path) -> None:
    tiny.write_image_classifier(tmp_path / "models" / "m")
    ViTImageProcessor(size={"height": 12, "width": 12}).save_pretrained(tmp_path / "models" / "m")
    rows = [{key: row[key] for key in ("image", "label")} for row in tiny.captioned(6)]
    message = run_error(tmp_path, rows, task="ImageClassification")
    assert "row 0: the model does not take the image, which is 3 x 12 x 12 after processing" in message


def test_model_that_takes_images_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "models" / "m")
    ViTImageProcessor(size={"height": 40, "width": 40}).save_pretrained(tmp_path / "models" / "m")
    rows = [{key: row[key] for key in ("image", "label")} for row in tiny.captioned(6)]
    assert run_model(tmp_path, rows, task="ImageClassification").steps


def test_truncated_texts_of_each_dataset_are_reported(tmp_path: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    write_llama(tmp_path, tokenizer, len(tokenizer))
    tiny.write_rows(tmp_path / "data" / "eval", [{"text": "Why? " * 30}, *tiny.texts(3)])
    callback = run_model(
        tmp_path, [*tiny.texts(6), {"text": "What? " * 30}], data={"validation": {"source": "pvc://data/eval"}}
    )
    assert callback.has_message("truncating 1 of 7 texts to 64 tokens (data.maxLength)")
    assert callback.has_message("truncating 1 of 4 texts of data.validation to 64 tokens")
