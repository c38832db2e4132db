"""What to do about a FineTuneJob: pure functions of the observed state, no I/O."""
