"""Enables the pytest plugin of the test harness."""

pytest_plugins = ["harness.plugin"]
