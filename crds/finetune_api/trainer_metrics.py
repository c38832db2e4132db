"""Names of the Prometheus metrics that the trainer exports on :9090 and the operator scrapes."""

from __future__ import annotations

from typing import Final

STEP: Final = "finetune_step"
PLANNED_STEPS: Final = "finetune_planned_steps"
EPOCH: Final = "finetune_epoch"
LOSS: Final = "finetune_loss"
EVALUATION: Final = "finetune_evaluation"
"""Latest evaluation; label `metric` without the prefix `eval/`."""
BEST_EVALUATION: Final = "finetune_best_evaluation"
"""Best value of the metric that selects the best checkpoint; label `metric` without the prefix `eval/`."""
BEST_EVALUATION_STEP: Final = "finetune_best_evaluation_step"
"""Optimizer step of the best evaluation; same label."""
LEARNING_RATE: Final = "finetune_learning_rate"
GRADIENT_NORM: Final = "finetune_gradient_norm"
MODULE_PARAMETERS: Final = "finetune_module_parameters"
MODULE_TRAINABLE: Final = "finetune_module_trainable_parameters"
MODULE_INFO: Final = "finetune_module_info"
"""Always 1; labels `module` and `optimizer`."""
SAMPLES_PER_SECOND: Final = "finetune_samples_per_second"
SAMPLES: Final = "finetune_samples_total"
STEPS_EXECUTED: Final = "finetune_steps_executed_total"
NONFINITE_STEPS: Final = "finetune_nonfinite_steps_total"
LAST_STEP_TIME: Final = "finetune_last_step_timestamp_seconds"
LAST_CHECKPOINT_STEP: Final = "finetune_last_checkpoint_step"
LAST_CHECKPOINT_TIME: Final = "finetune_last_checkpoint_timestamp_seconds"
ESTIMATED_COMPLETION_TIME: Final = "finetune_estimated_completion_timestamp_seconds"

MODULE_LABEL: Final = "module"
METRIC_LABEL: Final = "metric"
OPTIMIZER_LABEL: Final = "optimizer"
