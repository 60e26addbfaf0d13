r"""Docstrings, which are written to be read in a terminal, as reST.

Three things in them are no reST: Markdown tables, names that end in an underscore (`weights_`
without backticks would be a link) and bars as in |x|. Formulas, literal blocks and doctests stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

_ROW = re.compile(r"\s*\|.*\|\s*$")
_RULE = re.compile(r"[\s|:-]+$")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


class _Prose:
    """Escapes lines of prose one after the other; code and roles may go on in the next line."""

    def __init__(self) -> None:
        self.in_code = False

    def escape(self, line: str) -> str:
        if not line.strip():
            self.in_code = False  # no code goes beyond a paragraph
        pieces = re.split("(`+)", line)
        for i, piece in enumerate(pieces):
            if i % 2:
                self.in_code = not self.in_code
            elif not self.in_code:
                piece = re.sub(r"(?<=\w)_(?=[\s,.;:)\]=]|$)", r"\\_", piece)
                pieces[i] = re.sub(r"(?<!\\)\|", r"\\|", piece)
        return "".join(pieces)


def _table(rows: list[str], indent: str) -> Iterator[str]:
    """Yield a list-table of the rows of a Markdown table, the rule below its head left out."""
    yield from ("", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", "")
    for row in rows:
        if _RULE.match(row):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip()[1:-1])]
        for i, cell in enumerate(cells):
            text = _Prose().escape(cell.replace(r"\|", "|"))
            yield f"{indent}   {'*' if i == 0 else ' '} - {text}".rstrip()
    yield ""


def _is_literal(line: str) -> bool:
    """Return whether what is indented below this line is no prose."""
    text = line.strip()
    if re.match(r"\.\. (math|code-block|code|doctest)::", text):
        return True
    return text.endswith("::") and not text.startswith("..")


def rest(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a docstring with what is no reST escaped or replaced."""
    prose = _Prose()
    i, kept = 0, -1  # kept: the indentation of the line whose block stays as it is
    while i < len(lines):
        line = lines[i]
        if kept >= 0 and line.strip() and _indent(line) <= kept:
            kept = -1
        if kept >= 0 or line.lstrip().startswith((">>>", "...")):
            yield line
        elif line.lstrip().startswith(":"):  # a field, whose name may end in an underscore
            yield re.sub(r"^(\s*:\w+ \w+)_:", r"\1\\_:", line)
        elif re.match(r"\s*=+( +=+)+\s*$", line):  # a simple table, up to its third rule
            end, rules = i + 1, 1
            while end < len(lines) and rules < 3:
                rules += bool(re.match(r"\s*=+( +=+)+\s*$", lines[end]))
                end += 1
            yield from (x.replace("|", "\\|") if "||" not in x else x for x in lines[i:end])
            i = end
            continue
        elif _ROW.match(line) and i + 1 < len(lines) and _RULE.match(lines[i + 1].strip() or "x"):
            end = i
            while end < len(lines) and _ROW.match(lines[end]):
                end += 1
            yield from _table(lines[i:end], " " * _indent(line))
            i = end
            continue
        else:
            if _is_literal(line):
                kept = _indent(line)
            yield prose.escape(line)
        i += 1


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = rest(lines)


def _name_aliases(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Write the aliases of conf.py's `autodoc_type_aliases` by their names."""

    def named(text: str | None) -> str | None:
        return text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)

    return named(signature), named(returned)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("autodoc-process-docstring", _process, priority=900)  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
