"""What `finetune plan` says of who owns what, whatever the model and whatever is wrong with the job."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig, LlavaConfig, PretrainedConfig

from finetune_api.loading import check_manifests

MODULES = """\
  modules:
    - {name: body, parameters: ["bert.*"], optimizer: {type: AdamW, learningRate: 1e-4}}
    - {name: head, parameters: ["classifier.*"], optimizer: {type: SGD, learningRate: 1e-2}}
"""
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: looked-at}
spec:
  model: {source: MODEL}
  data: {train: {source: pvc://tiny/train}}
  training: {epochs: 2, batchSize: 8}
"""
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {"model_type": "clip_vision_model", **LAYERS, "image_size": 16, "patch_size": 4}
LANGUAGE = {"model_type": "llama", **LAYERS, "vocab_size": 40, "max_position_embeddings": 32}

Look = Callable[..., Any]


@pytest.fixture
def look(work: Any) -> Look:
    """Plan a job on the tiny model, or on one of which there is only this config."""

    def plan(config: PretrainedConfig | None = None, modules: str = "", *arguments: str, source: str = "") -> Any:
        if config is not None:
            config.save_pretrained(work.folder / "claims" / "bare" / "model")
        source = source or ("pvc://bare/model" if config else "pvc://tiny/model")
        work.write(JOB.replace("MODEL", source) + modules)
        return work.on_job("plan", *arguments)

    return plan


def document(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def vision_language() -> PretrainedConfig:
    return LlavaConfig(vision_config=VISION, text_config=LANGUAGE, architectures=["LlavaForConditionalGeneration"])


def unclear() -> PretrainedConfig:
    return BertConfig(**LAYERS, vocab_size=40)


# The tree


def test_frozen_modules_and_what_is_left_out_are_marked(look: Look) -> None:
    modules = '  unmatched: Freeze\n  modules:\n    - {name: body, parameters: ["bert.encoder.*"], frozen: true}\n'
    modules += '    - {name: head, parameters: ["classifier.*"], optimizer: {type: SGD, learningRate: 1e-2}}\n'
    result = look(None, modules)
    assert result.exit_code == 0, result.output
    assert re.search(r"── encoder.layer.\{0-1\} ×2 +32 .*body \(frozen\)\n", result.output)
    assert re.search(r"── embeddings +5 .*no module \(frozen\)\n", result.output)
    assert re.search(r"of .* parameters stay frozen", result.output)


def test_a_tied_weight_is_shown_with_all_its_names(look: Look) -> None:
    config = LlamaConfig(**{**LANGUAGE, "tie_word_embeddings": True}, architectures=["LlamaForCausalLM"])
    modules = '  modules:\n    - {name: words, parameters: ["lm_head.*"], frozen: true}\n'
    modules += '    - {name: body, parameters: ["*"], exclude: ["lm_head.*"], optimizer: {type: SGD, learningRate: 1}}'
    arguments = ("--set", "data.train.source=pvc://elsewhere/train")
    result = look(config, modules, *arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"── embed_tokens.weight .* words \(frozen\) = lm_head.weight\n", result.output)
    embeddings = document(look(config, modules, *arguments, "--output", "json"))["parameters"][0]
    assert embeddings == {
        "name": "model.embed_tokens.weight",
        "sharedNames": ["lm_head.weight"],
        "shape": [40, 16],
        "elements": 640,
        "module": "words",
        "matches": ["words"],
        "frozen": True,
    }


@pytest.mark.parametrize("width", [80, 100, 120])
def test_plain_text_is_as_wide_as_it_is_asked_to_be(look: Look, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = look(None, MODULES)
    assert max(map(len, result.stdout.splitlines())) <= width
    assert re.search(r"── classifier +2 +34 +head\n", result.stdout)


# Mistakes


OWNERSHIP = {
    "typo": (MODULES.replace("bert.*", "brt.*"), "did you mean 'bert.*'", r"── bert +39 .*no module"),
    "two owners": (
        MODULES.replace('"classifier.*"', '"classifier.*", "bert.pooler.*"'),
        "modules 'body' and 'head' all match",
        r"── pooler.dense .*body and head \(one too many\)",
    ),
    "no owner": (MODULES.replace("bert.*", "bert.encoder.*"), "belong to no module", r"── embeddings .*no module"),
}


@pytest.mark.parametrize("mistake", OWNERSHIP)
@pytest.mark.parametrize("data", ["pvc://tiny/train", "pvc://elsewhere/train"])
def test_a_mistake_about_owners_is_shown_where_it_is(look: Look, mistake: str, data: str) -> None:
    modules, words, line = OWNERSHIP[mistake]
    result = look(None, modules, "--set", f"data.train.source={data}", "--set", "task=SequenceClassification")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert re.search(line, result.stdout)


MUON = MODULES.replace("{type: SGD", "{type: Muon")


@pytest.mark.parametrize("data", ["pvc://tiny/train", "pvc://elsewhere/train"])
def test_an_optimizer_that_cannot_take_its_parameters_is_a_mistake_without_data_too(look: Look, data: str) -> None:
    result = look(None, MUON, "--set", f"data.train.source={data}")
    assert result.exit_code == 2
    assert "modules[1].optimizer (head): Muon takes matrices only, and 1 parameter" in result.stderr


def test_data_that_are_not_where_they_should_be_still_show_the_model(look: Look) -> None:
    result = look(None, MODULES, "--set", "data.train.source=pvc://tiny/trian")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: data.train.source: pvc://tiny/trian: claim 'tiny' has no trian")
    assert re.search(r"── bert +39 .* body\n", result.stdout)
    assert re.search(r"metric: eval/accuracy +# default", result.stdout), "the effective job, for its task"


def test_a_model_that_is_not_where_it_should_be_still_shows_the_modules(look: Look) -> None:
    result = look(None, MODULES, source="pvc://tiny/modle")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: model.source: pvc://tiny/modle: claim 'tiny' has no modle")
    assert re.search(r"head +\? +SGD", result.stdout)


@pytest.mark.usefixtures("empty_hub")
def test_a_schedule_longer_than_the_data_is_a_mistake_without_the_model_too(look: Look) -> None:
    modules = MODULES.replace("learningRate: 1e-4}", "learningRate: 1e-4}, schedule: [{type: Constant, steps: 500}]")
    result = look(None, modules, source="hf://nobody/nothing")
    assert result.exit_code == 2
    assert "modules 'body': schedule[0] lasts 500 steps" in result.stderr
    assert re.search(r"head +\? +SGD", result.stdout)


def test_a_mistake_is_in_the_document_too(look: Look) -> None:
    modules, words, _ = OWNERSHIP["two owners"]
    result = look(None, modules, "--output", "json")
    assert result.exit_code == 2
    found = document(result)
    assert words in found["mistake"]
    pooler = next(it for it in found["parameters"] if it["name"] == "bert.pooler.dense.bias")
    assert (pooler["module"], pooler["matches"]) == (None, ["body", "head"])


def test_a_mistake_leaves_no_half_effective_yaml(look: Look) -> None:
    result = look(None, OWNERSHIP["typo"][0], "--output", "yaml")
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_task_that_nobody_does_yet_still_shows_the_model(look: Look) -> None:
    result = look(vision_language())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: task: not yet supported: task ImageTextToText; supported are Contrastive, ")
    assert result.stderr.count("\n") == 1
    assert re.search(r"LlavaForConditionalGeneration  \d+ tensors", result.stdout)
    assert "preset LLaVA" in result.stdout
    assert "github.com/haotian-liu/LLaVA" in result.stdout


def test_an_unclear_task_still_shows_the_model_and_says_what_to_do(look: Look) -> None:
    result = look(unclear())
    assert result.exit_code == 2
    assert "task: cannot be inferred from the model's config" in result.stderr
    assert re.search(r"BertModel  39 tensors", result.stdout)
    assert "no preset is known for this model" in result.stdout


# Proposals


def test_a_job_without_modules_is_told_what_it_could_say(look: Look) -> None:
    result = look()
    assert result.exit_code == 0, result.output
    assert "proposal: preset text classification" in result.stdout
    assert "Without modules, one module 'all' trains everything with AdamW at 5e-5" in result.stdout.replace("\n", " ")
    snippet = result.stdout[result.stdout.index("  modules:\n    #") :]
    (verdict,) = check_manifests(JOB.replace("MODEL", "pvc://tiny/model") + snippet, "pasted.yaml")
    assert verdict.issues == ()


def test_what_is_proposed_can_be_pasted_and_planned(look: Look) -> None:
    proposal = document(look(None, "", "--output", "json"))["proposal"]
    assert proposal["preset"] == "text classification"
    assert [module["name"] for module in proposal["modules"]] == ["body", "head"]
    pasted = look(None, f"{proposal['yaml']}\n", "--output", "json")
    assert pasted.exit_code == 0, pasted.output
    found = document(pasted)
    assert found["proposal"] is None
    assert {it["module"] for it in found["parameters"]} == {"body", "head"}


def test_a_job_with_modules_gets_no_proposal(look: Look) -> None:
    assert "proposal" not in look(None, MODULES).stdout


# For machines


def test_the_document_says_everything_about_each_module(look: Look) -> None:
    found = document(look(None, MODULES, "--output", "json"))
    body, head = found["modules"]
    assert found["model"] == "BertForSequenceClassification"
    assert (body["patterns"], body["exclude"], body["frozen"], body["tensors"]) == (["bert.*"], [], False, 39)
    assert (head["optimizer"]["type"], head["optimizer"]["learningRate"]) == ("SGD", 0.01)
    assert head["schedule"][0] == {"type": "Warmup", "fraction": 0.03, "startFactor": 0.0}
    assert head["window"] == {"start": 0, "end": found["totalSteps"]}
    assert (found["trainSamples"], found["stepsPerEpoch"]) == (60, 7)
    assert sum(it["elements"] for it in found["parameters"]) == body["elements"] + head["elements"]
    assert [it["name"] for it in found["parameters"] if it["module"] == "head"] == head["parameters"]


def test_a_hub_model_is_planned_offline_from_the_cache(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--some--bert" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    BertConfig(**LAYERS, vocab_size=40, architectures=["BertForSequenceClassification"]).save_pretrained(snapshot)
    refs = tmp_path / "hub" / "models--some--bert" / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    result = look(None, MODULES, "--set", "data.train.source=pvc://elsewhere/train", source="hf://some/bert")
    assert result.exit_code == 0, result.output
    assert re.search(r"── bert +39 .* body\n", result.stdout)
    assert "not known: how many steps the run takes" in result.stdout
