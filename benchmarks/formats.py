"""Time, memory and disk of reading large files, relative to `datasets`; and of checking images, by worker processes.

    python benchmarks/formats.py --megabytes 200 --images 2000

Inputs are generated from a seed. Every measurement is a process of its own, with an empty cache for the first reading
and the same cache for the second. Compare the ratios, nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SEED, COLUMNS, ROWS_PER_MB = 17, 10, 1000
IMAGE_SIZE = (1024, 768)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where the inputs are written; default: a temporary folder")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "INPUT", "WORKERS"), help="one measurement, here")
    options = parser.parse_args()
    if options.measure:
        what, folder, workers = options.measure
        print(json.dumps(MEASUREMENTS[what](Path(folder), int(workers))))
        return
    with TemporaryDirectory(dir=options.folder) as folder:
        print_readers(Path(folder), options.megabytes)
        print_images(Path(folder), options.images)


def print_readers(folder: Path, megabytes: int) -> None:
    write_tables(folder, megabytes * ROWS_PER_MB)
    table = Table(title=f"{COLUMNS} columns, 2 of them used", box=box.MARKDOWN)
    for heading in ("", "seconds", "memory growth MiB", "cache MiB", "cache / file"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, format in (("parquet", "parquet"), ("csv", "csv")):
        size = sum(file.stat().st_size for file in (folder / name).iterdir())
        for what, label in ((f"{format}-datasets", "datasets"), ("read", "first reading"), ("read", "second reading")):
            cache = folder / f"cache-{name}-{what}"
            result = start_process(what, folder / name, 0, cache)
            cells = (f"{result['seconds']:.1f}", f"{result['growth']:.0f}", f"{disk_usage(cache) / 2**20:.0f}")
            table.add_row(f"{name}, {size / 2**20:.0f} MiB: {label}", *cells, f"{disk_usage(cache) / size:.2f}")
    Console(width=120).print(table)


def print_images(folder: Path, count: int) -> None:
    write_images(folder / "images", count)
    seconds = {
        "decoding each image in one process": start_process("decode", folder / "images", 0, folder / "c0")["seconds"],
        "check in one process": start_process("check", folder / "images", 0, folder / "c1")["seconds"],
        "check with 2 workers": start_process("check", folder / "images", 2, folder / "c2")["seconds"],
    }
    table = Table(title=f"{count:,} JPEG images of {IMAGE_SIZE[0]} × {IMAGE_SIZE[1]}", box=box.MARKDOWN)
    for heading in ("", "seconds", "vs decoding"):
        table.add_column(heading, justify="left" if not heading else "right")
    baseline = next(iter(seconds.values()))
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", f"{value / baseline:.2f}")
    Console(width=120).print(table)


# Inputs ----------------------------------------------------------------------------------------------------------


def write_tables(folder: Path, rows: int) -> None:
    """The same rows of about a kilobyte as parquet and as CSV; `text` and `label` are the columns that are used."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    chance = random.Random(SEED)
    words = ["".join(chance.choices("abcdefghij", k=8)) for _ in range(50_000)]
    (folder / "parquet").mkdir()
    (folder / "csv").mkdir()
    part = 10_000
    names = ["text", "label", *(f"unused_{number}" for number in range(COLUMNS - 2))]
    schema = pa.schema([(name, pa.string()) for name in names])
    with (
        pyarrow.parquet.ParquetWriter(folder / "parquet" / "train.parquet", schema) as parquet,
        pyarrow.csv.CSVWriter(folder / "csv" / "train.csv", schema) as csv,
    ):
        for start in range(0, rows, part):
            count = min(part, rows - start)
            columns: dict[str, list[str]] = {
                name: [" ".join(chance.choices(words, k=12)) for _ in range(count)] for name in names
            }
            columns["label"] = [str(chance.randrange(10)) for _ in range(count)]
            table = pa.table(columns, schema)
            parquet.write_table(table)
            csv.write_table(table)


def write_images(folder: Path, count: int) -> None:
    """A class folder with images of smooth noise, whose files are about as large as those of photos."""
    import numpy as np
    from PIL import Image

    chance = np.random.default_rng(SEED)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        coarse = chance.integers(0, 255, size=(IMAGE_SIZE[1] // 8, IMAGE_SIZE[0] // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(IMAGE_SIZE, Image.Resampling.BICUBIC)
        image.save(folder / ("cat", "dog")[number % 2] / f"{number}.jpg", quality=90)


# Measurements, each in a process of its own ------------------------------------------------------------------------


def start_process(what: str, folder: Path, workers: int, cache: Path) -> dict[str, float]:
    arguments = [sys.executable, __file__, "--measure", what, str(folder), str(workers)]
    environment = {**os.environ, "HF_HOME": str(cache)}
    done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def timed(function: Any) -> dict[str, float]:
    """Seconds of a call, and by how many MiB it raised the peak memory of the process."""
    before, start = peak_memory(), time.perf_counter()
    function()
    return {"seconds": time.perf_counter() - start, "growth": peak_memory() - before}


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_dataset(folder: Path, roles: dict[str, str]) -> Any:
    from finetune_api.data import TrainingSet
    from finetune_trainer import data
    from finetune_trainer.claims import ClaimPaths

    claims = ClaimPaths(folder.parent)
    files = data.resolve_files(TrainingSet(source=f"pvc://{folder.name}"), "data.train", claims)
    bad_rows = data.BadRowPolicy(skip=False, limit=0)
    return data.read_table(files, bad_rows, list(roles.values())).to_dataset(roles)


def measure_read(folder: Path, _: int) -> dict[str, float]:
    import finetune_trainer.data  # noqa: F401 - imports are not measured

    return timed(lambda: open_dataset(folder, {"text": "text", "label": "label"}))


def measure_datasets(format: str, folder: Path) -> dict[str, float]:
    import datasets

    datasets.disable_progress_bars()
    file = str(next(folder.iterdir()))
    return timed(lambda: datasets.load_dataset(format, data_files=file, split="train"))


def measure_decoding(folder: Path, _: int) -> dict[str, float]:
    from PIL import Image

    def decode() -> None:
        for file in sorted(folder.rglob("*.jpg")):
            Image.open(file).convert("RGB")

    return timed(decode)


def measure_check(folder: Path, workers: int) -> dict[str, float]:
    from finetune_trainer.data.loader import map_in_workers

    dataset = open_dataset(folder, {"image": "image", "label": "label"})
    parts = [range(start, min(start + 32, len(dataset))) for start in range(0, len(dataset), 32)]

    def check(part: range) -> int:
        return sum(dataset.check_image(row).problem is not None for row in part)

    return timed(lambda: list(map_in_workers(check, parts, workers)))


def disk_usage(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


MEASUREMENTS = {
    "read": measure_read,
    "parquet-datasets": lambda folder, _: measure_datasets("parquet", folder),
    "csv-datasets": lambda folder, _: measure_datasets("csv", folder),
    "decode": measure_decoding,
    "check": measure_check,
}

if __name__ == "__main__":
    main()
