"""Which task a model is made for, from configs as they are on the hub; no weights."""

from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from finetune_trainer.errors import UserError
from finetune_trainer.planning import model_loader
from finetune_trainer.tasks import auto_class, detect, find


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
def test_the_task_is_read_from_the_config(task: str, model_type: str, architecture: str | None) -> None:
    assert detect(config_of(model_type, architecture)) == task


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
def test_a_task_that_is_not_clear_is_asked_for(model_type: str, architecture: str) -> None:
    with pytest.raises(UserError) as refusal:
        detect(config_of(model_type, architecture))
    assert str(refusal.value) == (
        f"task: not clear from the model's config (model_type {model_type}, architectures {architecture}); "
        "say one of Contrastive, CausalLM, SequenceClassification, ImageClassification"
    )


def test_a_vision_language_model_is_recognized_and_not_yet_supported() -> None:
    with pytest.raises(UserError, match="not yet supported: task ImageTextToText"):
        find("ImageTextToText")
    assert auto_class("ImageTextToText") is AutoModelForImageTextToText
    assert auto_class("CausalLM") is AutoModelForCausalLM
    with pytest.raises(UserError, match="not yet supported: task Custom"):
        auto_class("Custom")


def test_the_skeleton_of_a_vision_language_model_names_its_towers_and_the_connector() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = config_of(
        "llava",
        "LlavaForConditionalGeneration",
        text_config={**small, "model_type": "llama", "vocab_size": 64, "num_key_value_heads": 2},
        vision_config={**small, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4},
        image_token_index=63,
    )
    model = model_loader.skeleton(auto_class(detect(config)), config)
    names = [name for parameter in model_loader.parameters_of(model) for name in parameter.names]
    for tower in ("vision_tower", "language_model", "multi_modal_projector"):
        assert any(tower in name for name in names), tower
    assert all(weight.is_meta for weight in model.parameters())


def test_a_model_that_the_task_cannot_build_is_refused() -> None:
    with pytest.raises(UserError, match=r"AutoModelForCausalLM, as the task needs it, builds no vit model"):
        model_loader.skeleton(auto_class("CausalLM"), config_of("vit", "ViTModel"))
