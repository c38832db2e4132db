"""What every tier shares: the harness's fixtures."""

pytest_plugins = ["harness.plugin"]
