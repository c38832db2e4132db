"""Every preset gives each parameter of its models one owner, and YAML of a valid manifest."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from finetune_api.loading import check_manifests
from finetune_trainer.planning import model_loader
from finetune_trainer.planning.parameters import ParameterInfo, assign_parameters
from finetune_trainer.planning.presets import Preset, ProposedModules, load_presets, modules_yaml, propose_modules
from unit.trainer import tiny

Config = Callable[[], Any]

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**LAYERS, "vocab_size": 40, "max_position_embeddings": 32}
LANGUAGE = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
VISION = {**LAYERS, "image_size": 16, "patch_size": 4}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
OPT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24,
    "max_position_embeddings": 32, "word_embed_proj_dim": 16,
}  # fmt: skip
BART = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip
DAVIT = {
    "embed_dim": [8] * 4, "depths": [1] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4, "projection_dim": 16,
}  # fmt: skip
QWEN_VISION = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
QWEN_25_VISION = {**QWEN_VISION, "out_hidden_size": 16, "intermediate_size": 24}
QWEN_3_VISION = {**QWEN_25_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
CLIP_TOWER = {"model_type": "clip_vision_model", **VISION}
SIGLIP_TOWER = {"model_type": "siglip_vision_model", **VISION}
LLAMA, QWEN2 = {"model_type": "llama", **LANGUAGE}, {"model_type": "qwen2", **LANGUAGE}
Q_FORMER = {**LAYERS, "vocab_size": 40, "encoder_hidden_size": 16}
PINPOINTS = [[16, 32]]


def config(name: str, **fields: Any) -> Config:
    return lambda: getattr(transformers, f"{name}Config")(**fields)


def dual_encoder() -> Any:
    kind = transformers.VisionTextDualEncoderConfig
    return kind.from_vision_text_configs(tiny.vision_config(), tiny.text_config(), projection_dim=8)


TIED_LLAMA = config("Llama", **LANGUAGE, tie_word_embeddings=True)
TOWERS = {"text_config": TEXT, "vision_config": VISION}
KNOWN: dict[str, tuple[str, Any, Config]] = {
    "clip": ("CLIP", AutoModel, config("CLIP", **TOWERS, projection_dim=8)),
    "siglip": ("SigLIP", AutoModel, config("Siglip", **TOWERS)),
    "siglip2": (
        "SigLIP",
        AutoModel,
        config("Siglip2", text_config=TEXT, vision_config={**LAYERS, "patch_size": 4, "num_patches": 16}),
    ),
    "dual encoder": ("VisionTextDualEncoder", AutoModel, dual_encoder),
    "llava": ("LLaVA", AutoModelForImageTextToText, config("Llava", vision_config=CLIP_TOWER, text_config=LLAMA)),
    "llava_next": (
        "LLaVA-OneVision",
        AutoModelForImageTextToText,
        config("LlavaNext", vision_config=CLIP_TOWER, text_config=LLAMA, image_grid_pinpoints=PINPOINTS),
    ),
    "llava_onevision": (
        "LLaVA-OneVision",
        AutoModelForImageTextToText,
        config("LlavaOnevision", vision_config=SIGLIP_TOWER, text_config=QWEN2, image_grid_pinpoints=PINPOINTS),
    ),
    "qwen2_vl": (
        "Qwen-VL",
        AutoModelForImageTextToText,
        config("Qwen2VL", text_config=LANGUAGE, vision_config={**QWEN_VISION, "embed_dim": 16}),
    ),
    "qwen2_5_vl": (
        "Qwen-VL",
        AutoModelForImageTextToText,
        config("Qwen2_5_VL", text_config=LANGUAGE, vision_config=QWEN_25_VISION),
    ),
    "qwen3_vl": (
        "Qwen-VL",
        AutoModelForImageTextToText,
        config("Qwen3VL", text_config=LANGUAGE, vision_config=QWEN_3_VISION),
    ),
    "qwen3_vl tied": (
        "Qwen-VL",
        AutoModelForImageTextToText,
        config("Qwen3VL", text_config=LANGUAGE, vision_config=QWEN_3_VISION, tie_word_embeddings=True),
    ),
    "gemma3": (
        "Gemma 3",
        AutoModelForImageTextToText,
        config("Gemma3", text_config=LANGUAGE, vision_config=SIGLIP_TOWER, mm_tokens_per_image=4),
    ),
    "blip-2": (
        "BLIP-2",
        AutoModelForImageTextToText,
        config(
            "Blip2", vision_config=VISION, qformer_config=Q_FORMER, text_config={"model_type": "opt", **OPT},
            num_query_tokens=4,
        ),
    ),
    "florence2": (
        "Florence-2",
        AutoModelForImageTextToText,
        config("Florence2", text_config={"model_type": "bart", **BART}, vision_config=DAVIT),
    ),
    "gemma3_text": ("causal language model", AutoModelForCausalLM, config("Gemma3Text", **LANGUAGE)),
    "gemma": ("causal language model", AutoModelForCausalLM, config("Gemma", **LANGUAGE)),
    "llama": ("causal language model", AutoModelForCausalLM, config("Llama", **LANGUAGE)),
    "llama tied": ("causal language model", AutoModelForCausalLM, TIED_LLAMA),
    "qwen3": ("causal language model", AutoModelForCausalLM, config("Qwen3", **LANGUAGE)),
    "gpt2": ("causal language model", AutoModelForCausalLM, config("GPT2", **GPT2)),
    "gpt_neox": ("causal language model", AutoModelForCausalLM, config("GPTNeoX", **TEXT)),
    "opt": ("causal language model", AutoModelForCausalLM, config("OPT", **OPT)),
    "bert": ("text classification", AutoModelForSequenceClassification, config("Bert", **TEXT)),
    "roberta": ("text classification", AutoModelForSequenceClassification, config("Roberta", **TEXT)),
    "distilbert": (
        "text classification",
        AutoModelForSequenceClassification,
        config("DistilBert", vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    ),
    "llama classifier": ("text classification", AutoModelForSequenceClassification, config("Llama", **LANGUAGE)),
    "vit": ("image classification", AutoModelForImageClassification, config("ViT", **VISION)),
    "resnet": (
        "image classification",
        AutoModelForImageClassification,
        config("ResNet", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]),
    ),
}  # fmt: skip

MANIFEST = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: proposed}
spec:
  model: {source: pvc://models/some}
  data: {train: {source: pvc://data/train}}
"""


def proposed(kind: Any, build: Config) -> tuple[ProposedModules, list[ParameterInfo]]:
    with torch.device("meta"):
        model = kind.from_config(build())
    parameters = model_loader.list_parameters(model)
    proposal = propose_modules(model.config.model_type, type(model).__name__, parameters)
    assert proposal is not None
    return proposal, parameters


@pytest.mark.parametrize("architecture", KNOWN)
def test_preset_assigns_each_parameter_once_and_its_yaml_is_valid(architecture: str) -> None:
    name, kind, build = KNOWN[architecture]
    proposal, parameters = proposed(kind, build)
    assert proposal.preset == name
    assignment = assign_parameters(proposal.modules, parameters)
    counts = Counter(owner for names in assignment.by_module.values() for owner in names)
    assert counts == Counter(parameter.name for parameter in parameters)
    assert not assignment.unmatched
    (result,) = check_manifests(f"{MANIFEST}{modules_yaml(proposal)}\n", "job.yaml")
    assert result.issues == ()


def test_every_preset_has_a_model_in_these_tests() -> None:
    assert {name for name, _, _ in KNOWN.values()} == {preset.name for preset in load_presets()}


def test_tied_head_belongs_to_the_embeddings() -> None:
    untied, _ = proposed(AutoModelForCausalLM, KNOWN["llama"][2])
    tied, _ = proposed(AutoModelForCausalLM, KNOWN["llama tied"][2])
    assert [module.name for module in untied.modules] == ["embeddings", "body", "head"]
    assert [module.name for module in tied.modules] == ["embeddings", "body"]


def test_merger_of_qwen_is_excluded_from_its_vision_tower() -> None:
    proposal, parameters = proposed(AutoModelForImageTextToText, KNOWN["qwen3_vl"][2])
    owned = assign_parameters(proposal.modules, parameters).by_module
    assert all(".merger." in name or ".deepstack_merger_list." in name for name in owned["connector"])
    assert not any("merger" in name for name in owned["vision"])


def test_patterns_that_match_nothing_are_not_proposed() -> None:
    proposal, _ = proposed(AutoModelForSequenceClassification, KNOWN["bert"][2])
    assert [(module.parameters, module.exclude) for module in proposal.modules] == [
        (["*"], ["classifier.*"]),
        (["classifier.*"], None),
    ]


def test_learning_rate_is_from_the_recipe_or_the_default() -> None:
    rates = {}
    for architecture in ("qwen2_vl", "gemma3"):
        proposal, _ = proposed(AutoModelForImageTextToText, KNOWN[architecture][2])
        rates[architecture] = [module.optimizer and module.optimizer.learning_rate for module in proposal.modules]
    assert rates == {"qwen2_vl": [1e-6, 1e-5, 2e-7], "gemma3": [None, 5e-5, 5e-5]}


def test_rejects_a_learning_rate_without_a_reference() -> None:
    preset = load_presets()[0].manifest()
    preset["modules"][0]["learningRate"] = 1e-3
    assert Preset.model_validate(preset).has_rates
    with pytest.raises(ValidationError, match="a learning rate needs a reference"):
        Preset.model_validate({key: value for key, value in preset.items() if key != "reference"})


def parameters(*names: str | tuple[str, ...]) -> list[ParameterInfo]:
    return [ParameterInfo((name,) if isinstance(name, str) else name, (2, 2)) for name in names]


def test_unknown_model_is_split_by_name_below_the_common_prefix() -> None:
    found = parameters("model.Encoder_1.a.weight", "model.Encoder_1.b.weight", "model.scale", "model.head.weight")
    proposal = propose_modules("unheard-of", "UnheardOf", found)
    assert proposal is not None
    assert proposal.preset is None
    assert "no preset matches" in proposal.description
    assert [(module.name, module.parameters) for module in proposal.modules] == [
        ("model-encoder-1", ["model.Encoder_1.*"]),
        ("model-scale", ["model.scale"]),
        ("model-head", ["model.head.*"]),
    ]


def test_split_by_name_assigns_tied_weights_to_their_first_name() -> None:
    found = parameters(("body.embed", "head.weight"), "body.weight", "head.bias")
    proposal = propose_modules("unheard-of", "UnheardOf", found)
    assert proposal is not None
    assert assign_parameters(proposal.modules, found).by_module == {
        "body": ("body.embed", "body.weight"),
        "head": ("head.bias",),
    }


@pytest.mark.parametrize("names", [["weight"], [f"part{number}.weight" for number in range(40)]])
def test_model_with_one_part_or_too_many_gets_no_proposal(names: list[str]) -> None:
    assert propose_modules("unheard-of", "UnheardOf", parameters(*names)) is None
