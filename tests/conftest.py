"""Enables the fixtures of the test harness."""

pytest_plugins = ["harness.plugin"]
