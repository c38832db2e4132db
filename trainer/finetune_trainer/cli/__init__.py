"""The `finetune` command: arguments, terminal and log output, plots."""
