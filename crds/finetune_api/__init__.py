"""The FineTuneJob API: pydantic models, schedules, defaults and CRD generation. No torch, no kopf, no cluster."""

from finetune_api.job import FineTuneJob, JobSpec

__all__ = ["FineTuneJob", "JobSpec"]
