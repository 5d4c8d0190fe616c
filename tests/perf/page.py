"""Pages of figures: tables in Markdown, each between marks that carry its name."""

import re
from collections.abc import Iterable, Sequence

Row = tuple[str, ...]


def table(head: Row, rows: Iterable[Row], words: Sequence[int] = (0,)) -> str:
    """A table in Markdown. words: the columns that are none of figures, and so begin at the left."""
    lines = [head, tuple("---" if at in words else "---:" for at in range(len(head))), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(page: str, made: dict[str, str]) -> str:
    """The page with its tables replaced. Raises ValueError where it has no place for one, or several."""
    for name, text in made.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(?=<!-- end -->)", flags=re.DOTALL)
        page, count = place.subn(lambda found, text=text: f"{found[1]}{text}\n", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"{count} places for the table {name} in the page; there must be one")
    return page
