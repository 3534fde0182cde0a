"""The comparison of both networks as a table for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from secateur.report.comparison import Row
from secateur.report.quantity import comparison, measured
from secateur.report.record import RunRecord


def comparison_table(record: RunRecord) -> Table:
    """The table `| dense | pruned | change`, for a rich console to print.

    Args:
        record: What the run recorded. Without rows the table is empty.

    Example:
        >>> row = Row("MACs", "", 41e6, 20.5e6, better="lower")
        >>> table = comparison_table(RunRecord("A run", "resnet20", "2025-01-01", rows=(row,)))
        >>> ", ".join(str(column.header) for column in table.columns[1:4])
        'dense, pruned, change'
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("dense", "pruned", "change"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in record.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> tuple[Text, ...]:
    values = zip((row.dense, row.pruned), row.spread or (None, None), strict=True)
    return (
        Text(row.title),
        *(Text(measured(value, row.unit, spread)) for value, spread in values),
        Text(comparison(row), style="bold"),
        Text(row.verdict or "", style={"worse": "yellow", "unclear": "dim"}.get(row.verdict or "", "")),
    )
