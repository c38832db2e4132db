"""`finetune plan` imports no heavy library beyond those that transformers.modeling_utils imports itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import ResNetConfig

HEAVY = (
    "torchvision",
    "torch._dynamo",
    "torch._inductor",
    "sklearn",
    "scipy.stats",
    "matplotlib",
    "torch.utils.tensorboard",
)
PROGRAM = f"""
import sys
import torch, transformers.modeling_utils
before = set(sys.modules)
from typer.testing import CliRunner
from finetune_trainer.cli.main import app
for job in sys.argv[2:]:
    result = CliRunner().invoke(app, ["plan", job, "--claims-dir", sys.argv[1]])
    assert result.exit_code == 0, result.output
print(*sorted((set(sys.modules) - before) & set({HEAVY})))
"""


def test_plan_imports_no_heavy_library(work: Any, tiny: Path) -> None:
    claims = work.folder / "claims"
    claims.mkdir()
    (claims / "tiny").symlink_to(tiny)
    write_images(claims / "pictures")
    text = work.job.read_text()
    image_job = work.write(
        text.replace("tiny/", "pictures/")
        .replace("SequenceClassification", "ImageClassification")
        .replace("bert.*", "resnet.*"),
        "image.yaml",
    )
    command = [sys.executable, "-c", PROGRAM, str(claims), str(work.job), str(image_job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def write_images(claim: Path) -> None:
    from PIL import Image

    ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]).save_pretrained(claim / "model")
    for label, color in (("dark", "black"), ("bright", "white")):
        (claim / "train" / label).mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (8, 8), color).save(claim / "train" / label / f"{index}.png")
