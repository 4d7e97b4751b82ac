"""Tables in markdown, for the benchmarks that print them and the cards that hold them."""

from collections.abc import Mapping, Sequence
from typing import Any


def cell(value: Any) -> str:
    """Three digits of a float, - for nothing, else the text; | would end the cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if 1e-3 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value))
    return str(value).replace("|", "/")


def markdown(rows: Mapping[str, Any] | Sequence[Mapping[str, Any]], corner: str = "") -> str:
    """A table of {row: value}, {row: {column: value}} or [{column: value}, ...]; columns in order of appearance."""
    if isinstance(rows, Mapping):
        rows = [{corner: name, **(row if isinstance(row, Mapping) else {"value": row})} for name, row in rows.items()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)
