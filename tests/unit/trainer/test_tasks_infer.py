"""The task of a model is inferred from configs as on the Hugging Face Hub, without weights."""

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.tasks import get_auto_class, get_task, infer_task


def config_of(model_type: str, architecture: str | None, **fields: Any) -> PretrainedConfig:
    config: PretrainedConfig = CONFIG_MAPPING[model_type](**fields)
    config.architectures = [architecture] if architecture else None
    return config


@pytest.mark.parametrize(
    ("task", "model_type", "architecture"),
    [
        ("CausalLM", "llama", "LlamaForCausalLM"),
        ("CausalLM", "gpt2", "GPT2LMHeadModel"),
        ("CausalLM", "qwen2", "Qwen2ForCausalLM"),
        ("CausalLM", "qwen3", "Qwen3ForCausalLM"),
        ("CausalLM", "mistral", "MistralForCausalLM"),
        ("CausalLM", "phi3", "Phi3ForCausalLM"),
        ("CausalLM", "gemma3_text", "Gemma3ForCausalLM"),
        ("CausalLM", "llama4_text", "Llama4ForCausalLM"),
        ("CausalLM", "opt", "OPTForCausalLM"),
        ("CausalLM", "mamba", "MambaForCausalLM"),
        ("ImageTextToText", "gemma3", "Gemma3ForConditionalGeneration"),
        ("ImageTextToText", "llava", "LlavaForConditionalGeneration"),
        ("ImageTextToText", "qwen2_vl", "Qwen2VLForConditionalGeneration"),
        ("ImageTextToText", "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
        ("ImageTextToText", "qwen3_vl", "Qwen3VLForConditionalGeneration"),
        ("ImageTextToText", "paligemma", "PaliGemmaForConditionalGeneration"),
        ("ImageTextToText", "idefics3", "Idefics3ForConditionalGeneration"),
        ("ImageTextToText", "smolvlm", "SmolVLMForConditionalGeneration"),
        ("ImageTextToText", "llama4", "Llama4ForConditionalGeneration"),
        ("ImageTextToText", "fuyu", "FuyuForCausalLM"),
        ("ImageTextToText", "git", "GitForCausalLM"),
        ("ImageTextToText", "blip", "BlipForConditionalGeneration"),
        ("ImageTextToText", "chameleon", "ChameleonForConditionalGeneration"),
        ("SequenceClassification", "bert", "BertForSequenceClassification"),
        ("SequenceClassification", "llama", "LlamaForSequenceClassification"),
        ("SequenceClassification", "deberta-v2", "DebertaV2ForSequenceClassification"),
        ("ImageClassification", "vit", "ViTForImageClassification"),
        ("ImageClassification", "resnet", "ResNetForImageClassification"),
        ("ImageClassification", "convnext", "ConvNextForImageClassification"),
        ("ImageClassification", "clip", "CLIPForImageClassification"),
        ("Contrastive", "clip", "CLIPModel"),
        ("Contrastive", "clip", None),
        ("Contrastive", "siglip", "SiglipModel"),
        ("Contrastive", "siglip2", "Siglip2Model"),
        ("Contrastive", "chinese_clip", "ChineseCLIPModel"),
        ("Contrastive", "align", "AlignModel"),
    ],
)
def test_task_is_inferred_from_the_architecture(task: str, model_type: str, architecture: str | None) -> None:
    assert infer_task(config_of(model_type, architecture)) == task


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("bert", "BertModel"),
        ("bert", "BertForMaskedLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("whisper", "WhisperForConditionalGeneration"),
        ("clipseg", "CLIPSegForImageSegmentation"),
        ("vit", "ViTModel"),
    ],
)
def test_ambiguous_architecture_is_rejected(model_type: str, architecture: str) -> None:
    with pytest.raises(UserError) as raised:
        infer_task(config_of(model_type, architecture))
    assert str(raised.value) == (
        f"task: cannot be inferred from the model's config (model_type {model_type}, architectures {architecture}); "
        "set it to one of Contrastive, CausalLM, SequenceClassification, ImageClassification"
    )


def test_vision_language_models_are_not_yet_supported() -> None:
    with pytest.raises(UserError, match="not yet supported: task ImageTextToText"):
        get_task("ImageTextToText")
    assert get_auto_class("ImageTextToText") is AutoModelForImageTextToText
    assert get_auto_class("CausalLM") is AutoModelForCausalLM
    with pytest.raises(UserError, match="not yet supported: task Custom"):
        get_auto_class("Custom")


def test_meta_model_of_a_vision_language_model_has_its_submodules() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = config_of(
        "llava",
        "LlavaForConditionalGeneration",
        text_config={**small, "model_type": "llama", "vocab_size": 64, "num_key_value_heads": 2},
        vision_config={**small, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4},
        image_token_index=63,
    )
    model = model_loader.build_meta_model(get_auto_class(infer_task(config)), config)
    names = [name for parameter in model_loader.list_parameters(model) for name in parameter.names]
    for tower in ("vision_tower", "language_model", "multi_modal_projector"):
        assert any(tower in name for name in names), tower
    assert all(weight.is_meta for weight in model.parameters())


def test_model_that_the_auto_class_cannot_build_is_rejected() -> None:
    with pytest.raises(
        UserError, match=r"the task needs an AutoModelForCausalLM, which cannot be built from a model of type vit"
    ):
        model_loader.build_meta_model(get_auto_class("CausalLM"), config_of("vit", "ViTModel"))
