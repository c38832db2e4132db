"""What only a GPU can show: CUDA generators in checkpoints, mixed precision, and running out of GPU memory."""

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from finetune_api import FineTuneJob
from finetune_trainer.errors import Interrupted, OutOfGPUMemory
from finetune_trainer.training.rng import get_rng_state, set_rng_state
from finetune_trainer.training.run import RunOptions, run
from unit.trainer import tiny
from unit.trainer.tiny import AfterStep, Recorder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = {"gpusPerNode": 1, "device": "CUDA"}
LARGE_VOCABULARY, WIDTH = 200_000, 512
HEAD_ONLY: list[dict[str, Any]] = [
    {"name": "layers", "parameters": ["model.layers.*"], "optimizer": {"type": "AdamW", "learningRate": 1e-3}},
    {"name": "rest", "parameters": ["*"], "exclude": ["model.layers.*"], "frozen": True},
]


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims")
    tiny.write_dual_encoder(folder / "models" / "dual")
    tiny.write_language_model(folder / "models" / "llama")
    write_wide_model(folder / "models" / "wide")
    tiny.write_rows(folder / "data" / "colours", tiny.captioned(60))
    tiny.write_rows(folder / "data" / "texts", tiny.texts(48))
    return folder


def write_wide_model(folder: Path) -> None:
    """A BF16 model whose frozen embeddings (2 × 102.4 million elements) dominate its memory."""
    torch.manual_seed(0)
    tokenizer = tiny.byte_tokenizer()
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=LARGE_VOCABULARY,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def language_job(model: str, **changes: Any) -> FineTuneJob:
    base: dict[str, Any] = {"task": "CausalLM", "resources": GPU, "training": {"batchSize": 8, "epochs": 1}}
    return tiny.job(model, "texts", **tiny.merged(base, changes))


def go(job: FineTuneJob, claims: Path, out: Path, recorder: Recorder | None = None) -> Recorder:
    recorder = recorder or Recorder()
    run(job, RunOptions(claims=tiny.claim_paths(claims, out)), recorder)
    return recorder


@pytest.mark.parametrize("precision", ["FP32", "BF16", "FP16"])
def test_resume_is_bit_exact(precision: str, claims: Path, tmp_path: Path) -> None:
    """Dropout in the vision encoder draws from the generator of the GPU."""
    job = tiny.contrastive_job(
        resources=GPU,
        training={"precision": precision, "deterministic": True, "batchSize": 6},
        checkpoint={"everySteps": 2},
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    go(job, claims, whole)
    with pytest.raises(Interrupted):
        go(job, claims, resumed, AfterStep(5, lambda: signal.raise_signal(signal.SIGTERM)))
    assert go(job, claims, resumed).resumed_step == 5
    expected, actual = (load_file(out / "result" / "model.safetensors") for out in (whole, resumed))
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("precision", ["BF16", "FP16"])
def test_losses_in_mixed_precision_are_close_to_fp32(precision: str, claims: Path, tmp_path: Path) -> None:
    exact = go(language_job("llama", training={"precision": "FP32"}), claims, tmp_path / "exact")
    mixed = go(language_job("llama", training={"precision": precision}), claims, tmp_path / "mixed")
    pairs = [(a.loss, b.loss) for a, b in zip(exact.steps, mixed.steps, strict=True) if not b.skipped]
    assert len(pairs) >= 4
    assert all(abs(a - b) < 0.05 * a for a, b in pairs)


def test_frozen_modules_keep_their_16_bit_weights(claims: Path, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    go(language_job("wide", modules=HEAD_ONLY), claims, tmp_path)
    elements = 2 * LARGE_VOCABULARY * WIDTH
    # In FP32 the two embedding matrices alone would take 4 bytes per element.
    assert torch.cuda.max_memory_allocated() - before < 3.5 * elements
    saved = load_file(tmp_path / "result" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "result" / "config.json").read_text())["dtype"] == "bfloat16"


def test_out_of_memory_is_found_before_the_first_step(claims: Path, tmp_path: Path) -> None:
    torch.cuda.set_per_process_memory_fraction(1.5e9 / torch.cuda.get_device_properties(0).total_memory)
    recorder = Recorder()
    try:
        with pytest.raises(OutOfGPUMemory, match=r"lower training\.microBatchSize"):
            go(language_job("wide", training={"batchSize": 48}), claims, tmp_path, recorder)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert not recorder.steps


def test_generator_state_of_the_gpu_is_restored() -> None:
    state = json.load(io.StringIO(json.dumps(get_rng_state())))
    expected = torch.rand(4, device="cuda")
    set_rng_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
