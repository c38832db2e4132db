"""The trainer: what runs in the pod, and on a laptop."""
