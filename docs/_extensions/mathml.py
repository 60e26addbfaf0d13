r"""Formulas as MathML, which browsers draw by themselves: no JavaScript, no fonts from elsewhere.

latex2mathml makes the elements. Browsers ignore its `mathvariant`, except "normal": letters of
\mathcal and \mathbb are written as the Unicode letters that they are.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

_BLACKBOARD = dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True))
_SCRIPT = dict(zip("BEFHILMR", "ℬℰℱℋℐℒℳℛ", strict=True))
# What latex2mathml does not know, by what it knows.
_OTHER_NAMES = {"{aligned}": "{align*}", r"\arg": r"\operatorname{arg}", r"\notin": "∉"}
_STYLED = re.compile(r'<(m[in]) mathvariant="(script|double-struck)">(\w)</\1>')

# The name of a function before its argument without parentheses, as in log p.
_FUNCTION = re.compile(r"(<m[io]>(?:log|exp|ln|arg)</m[io]>)(?!<mo[^>]*>&#x00028;)")


def _letter(match: re.Match[str]) -> str:
    _, style, letter = match.groups()
    known, first = (_SCRIPT, 0x1D49C) if style == "script" else (_BLACKBOARD, 0x1D538)
    return f"<mi>{known.get(letter, chr(first + ord(letter) - ord('A')))}</mi>"


def to_mathml(latex: str, display: str) -> str:
    """Return the MathML element of a formula."""
    for name, known in _OTHER_NAMES.items():
        latex = latex.replace(name, known)
    latex = re.sub(r"(?<!\\)\\\s", r"\\;", latex)  # a space, and not the break of a line before one
    mathml = _STYLED.sub(_letter, convert(latex, display=display))
    mathml = mathml.replace(r"\_", "_")  # in \text
    mathml = _FUNCTION.sub(r'\1<mspace width="0.17em" />', mathml)
    if "\\" in re.sub(r"<[^>]*>", "", mathml):
        logging.getLogger(__name__).warning("latex2mathml does not know a command of %r", latex)
    return mathml


def _inline(writer: HTML5Translator, node: nodes.Element) -> None:
    writer.body.append(to_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer: HTML5Translator, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math-block">{to_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"  # type: ignore[attr-defined]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
