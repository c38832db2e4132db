"""The weights in a model's files are those that the model needs; anything else is refused or announced.

Each case builds a tiny model with random weights, saves it, changes the files, and checks them as `finetune plan` and a
run do: by the headers alone, and after loading.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
)

from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.weight_check import WeightReport
from finetune_trainer.training.assembly import verify
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny

Tensors = dict[str, Tensor]
TEXT = {**tiny.SMALL, "num_hidden_layers": 2, "vocab_size": 40, "max_position_embeddings": 32}
IMAGES = {**tiny.SMALL, "image_size": 8, "patch_size": 4}
GROUPED = {**TEXT, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
SEQ2SEQ = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "max_source_positions": 16,
    "max_target_positions": 16,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
}
LANGUAGE = AutoModelForCausalLM
SEQUENCES = AutoModelForSequenceClassification
PICTURES = AutoModelForImageClassification


@dataclass(frozen=True)
class FakeTask:
    auto_class: Any
    new_head: bool = False


def build(model_class: str, /, **fields: Any) -> Any:
    """A tiny model of a transformers class."""
    torch.manual_seed(0)
    kind = getattr(transformers, model_class)
    return kind(kind.config_class(**fields))


def write(folder: Path, model: Any, edit: Callable[[Tensors], Tensors] | None = None, **options: Any) -> Path:
    """Save a model, and change the tensors of its only file."""
    model.save_pretrained(folder, **options)
    if edit:
        tensors = {name: tensor.clone() for name, tensor in edit(load_file(folder / "model.safetensors")).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check(folder: Path, task: FakeTask, **config_changes: Any) -> WeightReport:
    """Check the weights by their headers, then load them; both must agree."""
    config = changed_config(folder, config_changes)
    pretrained = model_loader.PretrainedSource("pvc://models/x", str(folder), None)
    meta = model_loader.build_meta_model(task.auto_class, config)
    planned = model_loader.list_parameters(meta)
    report = model_loader.check_weights(pretrained, config, meta, task.new_head)
    assert report is not None
    loaded, new = model_loader.load_model(pretrained, task, config)  # type: ignore[arg-type]
    verify(loaded, planned, pretrained)
    absent = "the checkpoint does not contain them"
    assert new.get(absent, []) == report.new.get(absent, [])
    return report


def changed_config(folder: Path, changes: Mapping[str, Any]) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def refusal(folder: Path, task: FakeTask, **config_changes: Any) -> str:
    """Why the weights are refused: the same message from the headers and after loading."""
    config = changed_config(folder, config_changes)
    pretrained = model_loader.PretrainedSource("pvc://models/x", str(folder), None)
    meta = model_loader.build_meta_model(task.auto_class, config)
    with pytest.raises(UserError) as early:
        model_loader.check_weights(pretrained, config, meta, task.new_head)
    with pytest.raises(UserError):
        model, _ = model_loader.load_model(pretrained, task, config)  # type: ignore[arg-type]
        meta = model_loader.build_meta_model(task.auto_class, config)
        verify(model, model_loader.list_parameters(meta), pretrained)
    return str(early.value)


# Ordinary files


@dataclass(frozen=True)
class Ordinary:
    """A saved model that loads for a task: which weights are new, and which tensors are not used."""

    model: str
    fields: Mapping[str, Any]
    task: FakeTask
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    added: Tensors = field(default_factory=dict)


CLASSIFY, CLASSIFY_IMAGES = FakeTask(SEQUENCES, new_head=True), FakeTask(PICTURES, new_head=True)
CLIP = {"text_config": TEXT, "vision_config": IMAGES, "projection_dim": 8}
ORDINARY = [
    Ordinary("BertForPreTraining", TEXT, CLASSIFY, ("classifier",), ("cls.*",)),
    Ordinary("BertForMaskedLM", TEXT, CLASSIFY, ("bert.pooler.dense", "classifier"), ("cls.*",)),
    Ordinary("BertModel", TEXT, CLASSIFY, ("classifier",), added={"embeddings.position_ids": torch.arange(32)[None]}),
    Ordinary("BertForSequenceClassification", TEXT, FakeTask(SEQUENCES)),
    Ordinary("BertForMaskedLM", {**TEXT, "is_decoder": True}, FakeTask(LANGUAGE)),
    Ordinary("RobertaForMaskedLM", TEXT, CLASSIFY, ("classifier.dense", "classifier.out_proj"), ("lm_head.*",)),
    Ordinary(
        "RobertaForTokenClassification", TEXT, CLASSIFY, ("classifier.dense", "classifier.out_proj"), ("classifier.*",)
    ),
    Ordinary("DebertaV2ForMaskedLM", TEXT, CLASSIFY, ("classifier", "pooler.dense"), ("cls.*",)),
    Ordinary(
        "ElectraForPreTraining",
        {**TEXT, "embedding_size": 16},
        CLASSIFY,
        ("classifier.dense", "classifier.out_proj"),
        ("discriminator_predictions.*",),
    ),
    Ordinary(
        "T5ForConditionalGeneration",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
        CLASSIFY,
        ("classification_head.dense", "classification_head.out_proj"),
    ),
    Ordinary("GPT2Model", GPT2, FakeTask(LANGUAGE), added={"h.0.attn.bias": torch.ones(1, 1, 32, 32)}),
    Ordinary("GPT2LMHeadModel", GPT2, CLASSIFY, ("score",)),
    Ordinary(
        "LlamaForCausalLM",
        TEXT,
        FakeTask(LANGUAGE),
        added={"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    ),
    Ordinary("LlamaForCausalLM", {**TEXT, "tie_word_embeddings": True}, FakeTask(LANGUAGE)),
    Ordinary("LlamaForCausalLM", TEXT, CLASSIFY, ("score",), ("lm_head.weight",)),
    Ordinary("Qwen2ForCausalLM", GROUPED, FakeTask(LANGUAGE)),
    Ordinary("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}, FakeTask(LANGUAGE)),
    Ordinary(
        "GPTNeoXForCausalLM",
        TEXT,
        FakeTask(LANGUAGE),
        added={
            "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 32, 32, dtype=torch.bool),
            "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        },
    ),
    Ordinary("WhisperForConditionalGeneration", SEQ2SEQ, FakeTask(LANGUAGE), (), ("model.encoder.*",)),
    Ordinary("ViTModel", IMAGES, CLASSIFY_IMAGES, ("classifier",), ("pooler.*",)),
    Ordinary(
        "ViTForMaskedImageModeling",
        IMAGES,
        CLASSIFY_IMAGES,
        ("classifier",),
        ("decoder.*", "vit.embeddings.mask_token"),
    ),
    Ordinary(
        "BeitForMaskedImageModeling",
        {**IMAGES, "vocab_size": 10},
        CLASSIFY_IMAGES,
        ("beit.pooler.layernorm", "classifier"),
        ("layernorm.*", "lm_head.*"),
    ),
    Ordinary(
        "CLIPModel",
        CLIP,
        CLASSIFY_IMAGES,
        ("classifier",),
        ("logit_scale", "text_model.*", "text_projection.weight", "visual_projection.weight"),
    ),
    Ordinary("CLIPModel", CLIP, FakeTask(AutoModel), added={"text_model.embeddings.position_ids": torch.arange(32)}),
    Ordinary(
        "SiglipModel", {"text_config": {**TEXT, "projection_size": 16}, "vision_config": IMAGES}, FakeTask(AutoModel)
    ),
]


@pytest.mark.parametrize("case", ORDINARY, ids=lambda case: f"{case.model}-{case.task.auto_class.__name__}")
def test_ordinary_files_are_accepted(case: Ordinary, tmp_path: Path) -> None:
    write(tmp_path, build(case.model, **case.fields), lambda tensors: tensors | case.added)
    report = check(tmp_path, case.task)
    new = {name.rpartition(".")[0] for names in report.new.values() for name in names}
    assert new == set(case.new)
    assert {pattern for pattern, _ in report.unused} == set(case.unused)


def test_sharded_files_with_old_names_are_accepted(tmp_path: Path) -> None:
    write(tmp_path, build("BertModel", **TEXT), max_shard_size="5KB")
    shards = list(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in load_file(shard).items()
        }
        save_file(old, shard, metadata={"format": "pt"})
    assert list(check(tmp_path, CLASSIFY).new.values()) == [["classifier.bias", "classifier.weight"]]


def test_batch_norm_without_counters_is_accepted(tmp_path: Path) -> None:
    fields = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    keep = lambda name: "num_batches_tracked" not in name  # noqa: E731
    write(tmp_path, build("ResNetModel", **fields), lambda all_: {n: t for n, t in all_.items() if keep(n)})
    assert check(tmp_path, CLASSIFY_IMAGES).unused == ()


def test_dtypes_of_the_files_are_known_by_the_names_of_the_model(tmp_path: Path) -> None:
    half = {"embeddings.word_embeddings.weight": torch.float16, "pooler.dense.bias": torch.float64}
    write(
        tmp_path,
        build("BertModel", **TEXT).bfloat16(),
        lambda all_: {name: tensor.to(half.get(name, tensor.dtype)) for name, tensor in all_.items()},
    )
    dtypes = check(tmp_path, CLASSIFY).dtypes
    assert dtypes["bert.embeddings.word_embeddings.weight"] == torch.float16
    assert dtypes["bert.pooler.dense.bias"] == torch.float64
    assert dtypes["bert.encoder.layer.1.output.dense.weight"] == torch.bfloat16
    assert "classifier.weight" not in dtypes


def test_integer_tensors_of_other_programs_are_accepted(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.causal_mask"
    write(tmp_path, build("LlamaForCausalLM", **TEXT), lambda all_: all_ | {name: torch.ones(4, 4, dtype=torch.bool)})
    assert check(tmp_path, FakeTask(LANGUAGE)).unused == ()


# Weights that would be random


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("prefix", "cause"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("module._orig_mod.", "torch.compile"),
        ("base_model.model.", "merge_and_unload"),
        ("_fsdp_wrapped_module.", "FSDP"),
        ("student.", "they have the prefix 'student.'"),
    ],
)
@pytest.mark.parametrize("new_head", [True, False])
def test_prefix_before_all_names(prefix: str, cause: str, new_head: bool, tmp_path: Path) -> None:
    write(tmp_path, build("BertForSequenceClassification", **TEXT), prefixed(prefix))
    message = refusal(tmp_path, FakeTask(SEQUENCES, new_head))
    assert "do not contain" in message
    assert "bert." in message
    assert cause in message


def test_wrapper_around_one_layer(tmp_path: Path) -> None:
    write(
        tmp_path,
        build("LlamaForCausalLM", **TEXT),
        lambda all_: {name.replace("layers.1.", "layers.1._orig_mod."): tensor for name, tensor in all_.items()},
    )
    message = refusal(tmp_path, FakeTask(LANGUAGE))
    assert "9 weights of LlamaForCausalLM: model.layers.1.* (9)" in message
    assert "torch.compile" in message


def test_head_that_is_not_made_anew_is_missing(tmp_path: Path) -> None:
    write(tmp_path, build("BertModel", **TEXT))
    assert "2 weights of BertForSequenceClassification: classifier.* (2)" in refusal(tmp_path, FakeTask(SEQUENCES))


def test_weight_of_the_base_model_is_missing_beside_a_new_head(tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.bias"
    write(tmp_path, build("BertModel", **TEXT), lambda all_: {key: all_[key] for key in all_ if key != name})
    assert f"1 weight of BertForSequenceClassification: bert.{name}" in refusal(tmp_path, CLASSIFY)


def test_output_layer_of_a_language_model_is_missing(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaModel", **TEXT))
    message = refusal(tmp_path, FakeTask(LANGUAGE))
    assert "lm_head.weight; if it is tied to model.embed_tokens.weight, set tie_word_embeddings: true" in message


def test_expert_is_missing(tmp_path: Path) -> None:
    write(
        tmp_path,
        build("MixtralForCausalLM", **GROUPED, num_local_experts=4),
        lambda all_: {name: tensor for name, tensor in all_.items() if "experts.3.w2" not in name},
    )
    assert "experts.down_proj has shape [3, " in refusal(tmp_path, FakeTask(LANGUAGE))


def test_experts_of_different_shapes(tmp_path: Path) -> None:
    write(
        tmp_path,
        build("MixtralForCausalLM", **GROUPED, num_local_experts=4).bfloat16(),
        lambda all_: {name: tensor[:3] if "experts.3.w2" in name else tensor for name, tensor in all_.items()},
    )
    config = AutoConfig.from_pretrained(tmp_path)
    pretrained = model_loader.PretrainedSource("pvc://models/x", str(tmp_path), None)
    early = model_loader.check_weights(pretrained, config, model_loader.build_meta_model(LANGUAGE, config), False)
    assert early is not None
    assert set(early.dtypes.values()) == {torch.bfloat16}
    with pytest.raises(UserError, match="cannot be converted to those of a mixtral model"):
        model_loader.load_model(pretrained, FakeTask(LANGUAGE), config)  # type: ignore[arg-type]


def test_decoder_of_another_architecture(tmp_path: Path) -> None:
    write(tmp_path, build("BartForConditionalGeneration", **SEQ2SEQ))
    message = refusal(tmp_path, FakeTask(LANGUAGE))
    assert "model.decoder.embed_tokens.weight" in message
    assert "model.shared.weight" in message


# Tensors that would be ignored


@pytest.mark.parametrize(
    ("model", "fields", "task", "changes", "ignored"),
    [
        ("BertForSequenceClassification", TEXT, CLASSIFY, {"num_hidden_layers": 1}, "bert.encoder.layer.1.* (16)"),
        ("BertModel", TEXT, CLASSIFY, {"num_hidden_layers": 1}, "encoder.layer.1.* (16)"),
        ("GPT2Model", GPT2, FakeTask(LANGUAGE), {"n_layer": 1}, "h.1."),
        (
            "LlamaForCausalLM",
            {**TEXT, "attention_bias": True},
            FakeTask(LANGUAGE),
            {"attention_bias": False},
            "model.layers.0.self_attn.k_proj.bias",
        ),
    ],
)
def test_config_without_layers_or_biases_of_the_files(
    model: str, fields: Any, task: FakeTask, changes: Any, ignored: str, tmp_path: Path
) -> None:
    write(tmp_path, build(model, **fields))
    message = refusal(tmp_path, task, **changes)
    assert "would be ignored" in message
    assert ignored in message


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("lm_head.bias", "use the config that the weights were saved with"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "adapter that is not merged"),
        ("model.layers.0.mlp.up_proj.weight_scale", "quantized weights"),
        ("model.layers.2.mlp.up_proj.weight", "use the config that the weights were saved with"),
    ],
)
def test_tensor_inside_a_layer_of_the_model(name: str, cause: str, tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TEXT), lambda tensors: tensors | {name: torch.ones(2, 2)})
    message = refusal(tmp_path, FakeTask(LANGUAGE))
    assert f"1 tensor of {tmp_path} would be ignored: {name}" in message
    assert cause in message


def test_two_tensors_for_one_weight(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TEXT), lambda tensors: tensors | {"norm.weight": torch.ones(16)})
    config = AutoConfig.from_pretrained(tmp_path)
    pretrained = model_loader.PretrainedSource("pvc://models/x", str(tmp_path), None)
    with pytest.raises(UserError, match=r"model\.norm\.weight and norm\.weight .* are the same weight"):
        model_loader.check_weights(pretrained, config, model_loader.build_meta_model(LANGUAGE, config), False)


# Tied weights

WORDS, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
TIED = {**TEXT, "tie_word_embeddings": True}


def test_tied_weights_that_differ(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TIED), lambda tensors: tensors | {OUTPUT: tensors[WORDS] + 1})
    message = refusal(tmp_path, FakeTask(LANGUAGE))
    assert f"{OUTPUT} and {WORDS} are tied" in message
    assert "tie_word_embeddings: false" in message


def test_tied_weights_of_an_encoder_and_a_decoder_that_differ(tmp_path: Path) -> None:
    fields = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    name = "decoder.embed_tokens.weight"
    write(
        tmp_path,
        build("T5ForConditionalGeneration", **fields),
        lambda tensors: tensors | {name: tensors["shared.weight"] + 1},
    )
    message = refusal(tmp_path, CLASSIFY)
    assert f"{name} and shared.weight are tied" in message


def test_tied_weights_that_are_equal(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TIED), lambda tensors: tensors | {OUTPUT: tensors[WORDS]})
    check(tmp_path, FakeTask(LANGUAGE))


def test_tied_weight_under_its_other_name(tmp_path: Path) -> None:
    rename = {WORDS: OUTPUT}
    write(tmp_path, build("LlamaForCausalLM", **TIED), lambda all_: {rename.get(n, n): t for n, t in all_.items()})
    check(tmp_path, FakeTask(LANGUAGE))


def test_untied_config_with_one_of_the_weights(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TIED))
    message = refusal(tmp_path, FakeTask(LANGUAGE), tie_word_embeddings=False)
    assert f"{OUTPUT}; if it is tied to {WORDS}" in message


def test_tie_that_loading_undoes() -> None:
    config = LlamaConfig(**TIED)
    planned = model_loader.list_parameters(model_loader.build_meta_model(LANGUAGE, config))
    untied = build("LlamaForCausalLM", **TEXT)
    pretrained = model_loader.PretrainedSource("pvc://models/x", "x", None)
    with pytest.raises(UserError, match=f"{WORDS} and {OUTPUT} are tied"):
        verify(untied, planned, pretrained)


def test_parameters_other_than_planned() -> None:
    planned = model_loader.list_parameters(model_loader.build_meta_model(SEQUENCES, BertConfig(**TEXT)))
    pretrained = model_loader.PretrainedSource("pvc://models/x", "x", None)
    with pytest.raises(UserError, match=r"not those of the plan: classifier\.bias \[2\], classifier\.bias \[5\]"):
        verify(build("BertForSequenceClassification", **TEXT, num_labels=5), planned, pretrained)


# Files


def test_incomplete_file(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TEXT))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: " in refusal(tmp_path, FakeTask(LANGUAGE))


def test_shard_is_missing(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TEXT), max_shard_size="5KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(tmp_path, FakeTask(LANGUAGE))


def test_damaged_index(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TEXT), max_shard_size="5KB")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json" in refusal(tmp_path, FakeTask(LANGUAGE))


def test_adapter(tmp_path: Path) -> None:
    write(tmp_path, build("LlamaForCausalLM", **TEXT))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    config = AutoConfig.from_pretrained(tmp_path)
    pretrained = model_loader.PretrainedSource("pvc://models/x", str(tmp_path), None)
    with pytest.raises(UserError, match="contains an adapter"):
        model_loader.check_weights(pretrained, config, model_loader.build_meta_model(LANGUAGE, config), False)


# In a run


def test_run_is_refused_before_the_weights_are_loaded(
    claims: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_classifier(tmp_path / "models" / "bert")
    tensors = prefixed("_orig_mod.")(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "data").symlink_to(claims / "data")
    monkeypatch.setattr(model_loader, "load_model", None)
    with pytest.raises(UserError, match=r"torch\.compile"):
        run(tiny.job("bert", "reviews"), RunOptions(claims=tiny.claim_paths(tmp_path, out)), tiny.Recorder())


def test_run_announces_unused_and_new_weights(claims: Path, out: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "models" / "bert"
    transformers.BertForPreTraining(tiny.text_config()).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    (tmp_path / "data").symlink_to(claims / "data")
    recorder = tiny.Recorder()
    job = tiny.job("bert", "reviews", task="SequenceClassification", training={"epochs": 1})
    run(job, RunOptions(claims=tiny.claim_paths(tmp_path, out)), recorder)
    assert recorder.has_message("not used, because the model of this task does not have them: cls.* (7)")
    assert recorder.has_message("because the checkpoint does not contain them: classifier.bias, classifier.weight")
