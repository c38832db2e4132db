"""The plan as tables: the run as labels and values, and one row per module.

`finetune plan` may know a part of it only (no model or no data on this machine), so the table is built from
`ModulePreview`s, whose unknown parts are None, and not from a `RunPlan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from finetune_trainer.cli.describe import (
    describe_optimizer,
    describe_regularization,
    describe_schedule,
    describe_window,
    regularization,
)
from finetune_trainer.formatting import format_count, format_number
from finetune_trainer.planning.preview import ModulePreview

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988")
"""One color per module, the same in terminal and plots: Paul Tol's palette for color-blind readers."""
DASH = "–"


def module_color(index: int) -> str:
    """The color of the module at this index of the manifest."""
    return COLORS[index % len(COLORS)]


def facts_table(facts: Sequence[tuple[str, str]]) -> Table:
    """Labels and values, one pair per line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for label, value in facts:
        grid.add_row(label, Text(value))
    return grid


def module_table(modules: Sequence[ModulePreview]) -> Table:
    """One row per module: its size, its optimizer, learning rate and schedule, and when it is trainable."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_footer=len(modules) > 1)
    table.caption, table.caption_justify = _notes(modules), "left"
    table.add_column("Module", "total", no_wrap=True)
    table.add_column("Parameters", _total(it.numel for it in modules), justify="right", no_wrap=True)
    table.add_column("Optimizer")
    table.add_column("LR", justify="right", no_wrap=True)
    table.add_column("Schedule")
    table.add_column("Trainable")
    for index, module in enumerate(modules):
        table.add_row(*_cells(module, module_color(index)))
    return table


def _cells(preview: ModulePreview, color: str) -> Iterator[Text]:
    module, optimizer = preview.module, preview.module.optimizer
    yield Text(module.name, f"bold {color}")
    yield Text("?", "dim") if preview.numel is None else Text(format_count(preview.numel))
    if optimizer is None:
        yield from (Text("frozen", "dim"), Text(DASH, "dim"), Text(DASH, "dim"))
    else:
        settings = ", ".join(filter(None, (describe_optimizer(optimizer), describe_regularization(module))))
        yield Text.assemble(optimizer.type, (f"\n{settings}" if settings else "", "dim"))
        yield Text(format_number(optimizer.learning_rate))
        yield Text(describe_schedule(module.schedule or []))
    yield Text(describe_window(module, preview.window))


def _total(counts: Iterable[int | None]) -> str:
    known = list(counts)
    return "?" if None in known else format_count(sum(count or 0 for count in known))


def _notes(modules: Sequence[ModulePreview]) -> str | None:
    return "\n".join(filter(None, (_frozen_note(modules), _decay_note(modules)))) or None


def _frozen_note(modules: Sequence[ModulePreview]) -> str | None:
    frozen = [it.numel for it in modules if it.module.frozen]
    if not frozen or any(it.numel is None for it in modules):
        return None
    return f"{_total(frozen)} of {_total(it.numel for it in modules)} parameters are frozen"


def _decay_note(modules: Sequence[ModulePreview]) -> str | None:
    excluding = [
        it.module.name
        for it in modules
        if it.module.decay_exclude == "OneDimensional"
        and {"weightDecay", "l1", "l2"}.intersection(regularization(it.module))
    ]
    return f"biases and norms get no weight decay, L1 or L2 ({', '.join(excluding)})" if excluding else None
