"""The language: what a user may write. No torch, no kopf, no cluster."""

from finetune_api.job import FineTuneJob, JobSpec

__all__ = ["FineTuneJob", "JobSpec"]
