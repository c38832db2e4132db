"""Runs the benchmarks one after the other, and writes their tables to docs/performance.md.

    PYTHONPATH=tests uv run --with accelerate python benchmarks/performance.py

Without names it runs all of them, which takes about 10 minutes on two quiet cores; with names (`loop data`) only these,
and keeps the other sections of the page.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "performance.md"
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "pyarrow")
SECTIONS = {
    "loop": "Training loop",
    "data": "Start of a run with a million rows",
    "formats": "Reading files and checking images",
    "imports": "Start of the commands",
}
INTRODUCTION = """# Performance

Measured by the scripts in [`benchmarks/`](../benchmarks), which compare alternatives side by side in one run. Compare
the ratios: times depend on the machine. [`benchmarks/performance.py`](../benchmarks/performance.py) writes this page.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SECTIONS], help="benchmarks to run; all by default")
    names = parser.parse_args().names or list(SECTIONS)
    sections = read_sections()
    for name in names:
        print(f"running benchmarks/{name}.py", file=sys.stderr)
        sections[name] = f"{describe_machine()}\n\n{run(name)}"
        write_page(sections)


def run(name: str) -> str:
    """The tables that a benchmark prints, in Markdown."""
    command = [sys.executable, FOLDER / f"{name}.py"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return as_markdown(done.stdout)


def as_markdown(output: str) -> str:
    """The tables of an output, each below its title.

    >>> as_markdown("loading\\n  A title  \\n   \\n|   | ms |\\n|---|---|\\n| a | 1 |\\n")
    '**A title**\\n\\n|   | ms |\\n|---|---|\\n| a | 1 |'
    """
    blocks = re.findall(r"^ *(\S[^|\n]*)\n(?: *\n)*((?:^ *\|.*\n?)+)", output, flags=re.MULTILINE)
    return "\n\n".join(
        f"**{title.strip()}**\n\n" + "\n".join(line.strip() for line in table.splitlines()) for title, table in blocks
    )


def describe_machine() -> str:
    """When, where and with what it was measured."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu[1] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GiB; Python {platform.python_version()}, {packages}."
    )


def read_sections() -> dict[str, str]:
    text = PAGE.read_text() if PAGE.exists() else ""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)[1:]
    titles = {title: name for name, title in SECTIONS.items()}
    return {titles[title]: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True) if title in titles}


def write_page(sections: dict[str, str]) -> None:
    parts = [f"## {title}\n\n{sections[name]}\n" for name, title in SECTIONS.items() if name in sections]
    PAGE.write_text("\n".join([INTRODUCTION, *parts]))


if __name__ == "__main__":
    main()
