"""Decides what to do about a FineTuneJob: pure functions of the observed state, without I/O."""
