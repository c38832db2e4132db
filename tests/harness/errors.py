"""The exception of the harness: states the problem and how to fix it."""


class HarnessError(Exception):
    """An expected failure; the command line prints its message without a traceback."""

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}\n  fix: {fix}" if fix else problem)
        self.problem = problem
        self.fix = fix
