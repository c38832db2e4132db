"""What a person is told when the harness cannot go on: what is wrong, and what to do about it."""


class HarnessError(Exception):
    """A failure that is explained by its message; commands print it without a traceback."""

    def __init__(self, problem: str, cure: str = "") -> None:
        super().__init__(f"{problem}\n  cure: {cure}" if cure else problem)
        self.problem = problem
        self.cure = cure
