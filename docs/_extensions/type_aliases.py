"""Aliases of types in signatures, written by their names."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx


def _by_name(
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
    app.connect("autodoc-process-signature", _by_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
