"""The output of `finetune plan` for valid and invalid jobs."""

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
metadata: {name: planned}
spec:
  model: {source: MODEL}
  data: {train: {source: pvc://tiny/train}}
  training: {epochs: 2, batchSize: 8}
"""
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {"model_type": "clip_vision_model", **LAYERS, "image_size": 16, "patch_size": 4}
LANGUAGE = {"model_type": "llama", **LAYERS, "vocab_size": 40, "max_position_embeddings": 32}

Plan = Callable[..., Any]


@pytest.fixture
def plan(work: Any) -> Plan:
    """Plan a job with the tiny model, or with a model that has only this config."""

    def run(config: PretrainedConfig | None = None, modules: str = "", *arguments: str, source: str = "") -> Any:
        if config is not None:
            config.save_pretrained(work.folder / "claims" / "bare" / "model")
        source = source or ("pvc://bare/model" if config else "pvc://tiny/model")
        work.write(JOB.replace("MODEL", source) + modules)
        return work.on_job("plan", *arguments)

    return run


def document(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def vision_language() -> PretrainedConfig:
    return LlavaConfig(vision_config=VISION, text_config=LANGUAGE, architectures=["LlavaForConditionalGeneration"])


def unclear() -> PretrainedConfig:
    return BertConfig(**LAYERS, vocab_size=40)


# The tree


def test_tree_marks_frozen_and_unmatched_parameters(plan: Plan) -> None:
    modules = '  unmatched: Freeze\n  modules:\n    - {name: body, parameters: ["bert.encoder.*"], frozen: true}\n'
    modules += '    - {name: head, parameters: ["classifier.*"], optimizer: {type: SGD, learningRate: 1e-2}}\n'
    result = plan(None, modules)
    assert result.exit_code == 0, result.output
    assert re.search(r"── encoder.layer.\{0,1\} ×2 +32 .*body \(frozen\)\n", result.output)
    assert re.search(r"── embeddings +5 .*no module \(frozen\)\n", result.output)
    assert re.search(r"of .* parameters are frozen", result.output)


def test_tied_weight_is_shown_with_all_its_names(plan: Plan) -> None:
    config = LlamaConfig(**{**LANGUAGE, "tie_word_embeddings": True}, architectures=["LlamaForCausalLM"])
    modules = '  modules:\n    - {name: words, parameters: ["lm_head.*"], frozen: true}\n'
    modules += '    - {name: body, parameters: ["*"], exclude: ["lm_head.*"], optimizer: {type: SGD, learningRate: 1}}'
    arguments = ("--set", "data.train.source=pvc://elsewhere/train")
    result = plan(config, modules, *arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"── embed_tokens.weight .* words \(frozen\) = lm_head.weight\n", result.output)
    embeddings = document(plan(config, modules, *arguments, "--output", "json"))["parameters"][0]
    assert embeddings == {
        "name": "model.embed_tokens.weight",
        "tiedNames": ["lm_head.weight"],
        "shape": [40, 16],
        "elements": 640,
        "module": "words",
        "matches": ["words"],
        "frozen": True,
    }


@pytest.mark.parametrize("width", [80, 100, 120])
def test_plain_text_fits_the_requested_width(plan: Plan, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = plan(None, MODULES)
    assert max(map(len, result.stdout.splitlines())) <= width
    assert re.search(r"── classifier +2 +34 +head\n", result.stdout)


# Errors


OWNERSHIP = {
    "typo": (MODULES.replace("bert.*", "brt.*"), "did you mean 'bert.*'", r"── bert +39 .*no module"),
    "two owners": (
        MODULES.replace('"classifier.*"', '"classifier.*", "bert.pooler.*"'),
        "modules: 'body' and 'head' match the same",
        r"── pooler.dense .*body, head \(matches several modules\)",
    ),
    "no owner": (MODULES.replace("bert.*", "bert.encoder.*"), "match no module", r"── embeddings .*no module"),
}


@pytest.mark.parametrize("error", OWNERSHIP)
@pytest.mark.parametrize("data", ["pvc://tiny/train", "pvc://elsewhere/train"])
def test_ownership_error_is_shown_in_the_tree(plan: Plan, error: str, data: str) -> None:
    modules, words, line = OWNERSHIP[error]
    result = plan(None, modules, "--set", f"data.train.source={data}", "--set", "task=SequenceClassification")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert re.search(line, result.stdout)


MUON = MODULES.replace("{type: SGD", "{type: Muon")


@pytest.mark.parametrize("data", ["pvc://tiny/train", "pvc://elsewhere/train"])
def test_unsupported_parameters_are_reported_without_data(plan: Plan, data: str) -> None:
    result = plan(None, MUON, "--set", f"data.train.source={data}")
    assert result.exit_code == 2
    assert "modules[1].optimizer (head): Muon supports 2-D parameters only, not 1 parameter" in result.stderr


def test_missing_data_still_shows_the_model(plan: Plan) -> None:
    result = plan(None, MODULES, "--set", "data.train.source=pvc://tiny/trian")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: data.train.source: pvc://tiny/trian: claim 'tiny' has no trian")
    assert re.search(r"── bert +39 .* body\n", result.stdout)
    assert re.search(r"metric: eval/accuracy +# default", result.stdout), "the effective job, for its task"


def test_missing_model_still_shows_the_modules(plan: Plan) -> None:
    result = plan(None, MODULES, source="pvc://tiny/modle")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: model.source: pvc://tiny/modle: claim 'tiny' has no modle")
    assert re.search(r"head +\? +SGD", result.stdout)


@pytest.mark.usefixtures("empty_hub")
def test_schedule_error_is_reported_without_the_model(plan: Plan) -> None:
    modules = MODULES.replace("learningRate: 1e-4}", "learningRate: 1e-4}, schedule: [{type: Constant, steps: 500}]")
    result = plan(None, modules, source="hf://nobody/nothing")
    assert result.exit_code == 2
    assert "modules[0] (body): schedule[0] lasts 500 steps" in result.stderr
    assert re.search(r"head +\? +SGD", result.stdout)


def test_json_has_the_error(plan: Plan) -> None:
    modules, words, _ = OWNERSHIP["two owners"]
    result = plan(None, modules, "--output", "json")
    assert result.exit_code == 2
    found = document(result)
    assert words in found["error"]
    pooler = next(it for it in found["parameters"] if it["name"] == "bert.pooler.dense.bias")
    assert (pooler["module"], pooler["matches"]) == (None, ["body", "head"])


def test_error_prints_no_partial_yaml(plan: Plan) -> None:
    result = plan(None, OWNERSHIP["typo"][0], "--output", "yaml")
    assert (result.exit_code, result.stdout) == (2, "")


def test_unsupported_task_still_shows_the_model(plan: Plan) -> None:
    result = plan(vision_language())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: task: not yet supported: task ImageTextToText; supported are Contrastive, ")
    assert result.stderr.count("\n") == 1
    assert re.search(r"LlavaForConditionalGeneration  \d+ tensors", result.stdout)
    assert "preset LLaVA" in result.stdout
    assert "github.com/haotian-liu/LLaVA" in result.stdout


def test_unclear_task_still_shows_the_model(plan: Plan) -> None:
    result = plan(unclear())
    assert result.exit_code == 2
    assert "task: cannot be inferred from the model's config" in result.stderr
    assert re.search(r"BertModel  39 tensors", result.stdout)
    assert "no preset matches this model" in result.stdout


# Proposals


def test_job_without_modules_gets_a_proposal(plan: Plan) -> None:
    result = plan()
    assert result.exit_code == 0, result.output
    assert "proposed modules: preset text classification" in result.stdout
    assert "Without modules, the module 'all' trains all parameters with AdamW at 5e-5" in result.stdout.replace(
        "\n", " "
    )
    snippet = result.stdout[result.stdout.index("  modules:\n    #") :]
    (checked,) = check_manifests(JOB.replace("MODEL", "pvc://tiny/model") + snippet, "pasted.yaml")
    assert checked.issues == ()


def test_proposal_can_be_pasted_and_planned(plan: Plan) -> None:
    proposal = document(plan(None, "", "--output", "json"))["proposal"]
    assert proposal["preset"] == "text classification"
    assert [module["name"] for module in proposal["modules"]] == ["body", "head"]
    pasted = plan(None, f"{proposal['yaml']}\n", "--output", "json")
    assert pasted.exit_code == 0, pasted.output
    found = document(pasted)
    assert found["proposal"] is None
    assert {it["module"] for it in found["parameters"]} == {"body", "head"}


def test_job_with_modules_gets_no_proposal(plan: Plan) -> None:
    assert "proposed modules" not in plan(None, MODULES).stdout


# JSON


def test_json_has_all_settings_of_each_module(plan: Plan) -> None:
    found = document(plan(None, MODULES, "--output", "json"))
    body, head = found["modules"]
    assert found["model"] == "BertForSequenceClassification"
    assert (body["patterns"], body["exclude"], body["frozen"], body["tensors"]) == (["bert.*"], [], False, 39)
    assert (head["optimizer"]["type"], head["optimizer"]["learningRate"]) == ("SGD", 0.01)
    assert head["schedule"][0] == {"type": "Warmup", "fraction": 0.03, "startFactor": 0.0}
    assert head["window"] == {"start": 0, "end": found["plannedSteps"]}
    assert (found["trainSamples"], found["stepsPerEpoch"]) == (60, 7)
    assert sum(it["elements"] for it in found["parameters"]) == body["elements"] + head["elements"]
    assert [it["name"] for it in found["parameters"] if it["module"] == "head"] == head["parameters"]


def test_hub_model_is_planned_offline_from_the_cache(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--some--bert" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    BertConfig(**LAYERS, vocab_size=40, architectures=["BertForSequenceClassification"]).save_pretrained(snapshot)
    refs = tmp_path / "hub" / "models--some--bert" / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    result = plan(None, MODULES, "--set", "data.train.source=pvc://elsewhere/train", source="hf://some/bert")
    assert result.exit_code == 0, result.output
    assert re.search(r"── bert +39 .* body\n", result.stdout)
    assert "unknown: the number of steps" in result.stdout
