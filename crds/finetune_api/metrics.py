"""The evaluation metrics: which values are better, and which tasks measure them.

Best checkpoint, early stopping, Plateau schedules and sweeps need the direction of a metric. It is looked up in this
table and never guessed from the name. A metric that is not in it needs an explicit `evaluation.direction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.evaluation import Direction


@dataclass(frozen=True)
class EvaluationMetric:
    """A metric of an evaluation.

    Args:
        direction: whether lower or higher values are better.
        tasks: the tasks that measure it.
        description: what it measures, in Markdown.
    """

    direction: Direction
    tasks: tuple[str, ...]
    description: str


CLASSIFICATION = ("SequenceClassification", "ImageClassification")
CONTRASTIVE = ("Contrastive",)

EVALUATION_METRICS: Mapping[str, EvaluationMetric] = {
    "eval/loss": EvaluationMetric(
        "Minimize",
        ("CausalLM", *CLASSIFICATION, *CONTRASTIVE),
        "Mean loss per sample; per covered token for CausalLM. The loss of Contrastive compares the samples of a batch "
        "and depends on `training.microBatchSize`",
    ),
    "eval/perplexity": EvaluationMetric("Minimize", ("CausalLM",), "exp of `eval/loss`"),
    "eval/token_accuracy": EvaluationMetric(
        "Maximize", ("CausalLM",), "Fraction of covered tokens that are the most probable next token"
    ),
    "eval/accuracy": EvaluationMetric("Maximize", CLASSIFICATION, "Fraction of samples with the correct class"),
    "eval/recall_at_1": EvaluationMetric(
        "Maximize", CONTRASTIVE, "Image-to-text retrieval: fraction of images whose most similar text is a correct one"
    ),
    "eval/recall_at_5": EvaluationMetric(
        "Maximize", CONTRASTIVE, "Fraction of images with a correct text among the 5 most similar ones"
    ),
    "eval/text_to_image_recall_at_1": EvaluationMetric(
        "Maximize", CONTRASTIVE, "Text-to-image retrieval: fraction of texts whose most similar image is a correct one"
    ),
    "eval/text_to_image_recall_at_5": EvaluationMetric(
        "Maximize", CONTRASTIVE, "Fraction of texts with a correct image among the 5 most similar ones"
    ),
    "eval/zero_shot_accuracy": EvaluationMetric(
        "Maximize",
        CONTRASTIVE,
        "With a column `label`: fraction of images closest to their own class, whose embedding is the mean of its "
        "texts",
    ),
}


def find_direction(metric: str) -> Direction | None:
    """Whether lower or higher values of a metric are better; None for a metric that is not in the table."""
    return EVALUATION_METRICS[metric].direction if metric in EVALUATION_METRICS else None
