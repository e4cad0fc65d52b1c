"""Reading the tables that experiments write as Markdown."""

from __future__ import annotations


def read_markdown(text: str) -> tuple[list[tuple[list[str], list[list[str]]]], list[str]]:
    r"""Tables and paragraphs of what ``table.md`` holds.

    Returns:
        For each table its headings and rows; and the lines that belong to none, headings with them.

    Example:
        >>> read_markdown("## Of all\n\n| a | b |\n| --- | --- |\n| x | y |\n\nTwo seeds.\n")
        ([(['a', 'b'], [['x', 'y']])], ['Of all', 'Two seeds.'])
    """
    tables: list[tuple[list[str], list[list[str]]]] = []
    prose, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            if line.strip():
                prose.append(line.lstrip("# ").strip())
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not inside:
            tables.append((cells, []))
        elif not all(set(cell) <= set("-: ") for cell in cells):
            tables[-1][1].append(cells)
        inside = True
    return tables, prose
