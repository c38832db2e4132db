"""The `finetune` command: what a user types and what a terminal shows."""
