"""Links of pages that lie elsewhere in the repository, such as kernels/<op>/README.md.

A page of docs/ that includes such a file stands for it: a link to the file leads to the page. A
link to any other file of the repository shows its text alone, since the site does not hold it. A
link to nothing is a warning, as everywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.mdit_to_docutils.base import default_slugify
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

ROOT = Path(__file__).parents[2]
_INCLUDE = re.compile(r"```\{include\} (\S+\.md)")


def _sources(app: Sphinx) -> dict[Path, str]:
    """Return the page of each Markdown file: of pages themselves and of what they include."""
    found = {}
    for name in app.project.docnames:
        path = Path(app.env.doc2path(name))
        found[path.resolve()] = name
        for target in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            found[(path.parent / target).resolve()] = name
    return found


class RepositoryLinks(SphinxTransform):
    """Direct a link by the file that it stands in, before Sphinx looks at it."""

    default_priority = 5

    def apply(self, **kwargs: Any) -> None:
        pages = _sources(self.app)
        here = Path(self.env.doc2path(self.env.docname)).resolve()
        included = [p for p, name in pages.items() if name == self.env.docname and p != here]
        source = included[0] if included else here
        nodes_found = [
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ]
        for node in nodes_found:
            if node.get("reftype") != "myst":
                continue
            target, _, anchor = node["reftarget"].partition("#")
            if node.get("refdomain") == "doc":  # a file with the ending of a page
                if not target.startswith("/"):
                    continue  # a page of docs/, which Sphinx finds
                target, anchor = f"{target}.md", node["reftargetid"] or ""
            path = (source.parent / target).resolve()
            if not target or not path.exists():
                continue
            if path in pages:
                self._to_page(node, pages[path], path, anchor)
            else:
                node.replace_self(nodes.inline("", "", *node.children))

    def _to_page(self, node: nodes.Element, page: str, path: Path, anchor: str) -> None:
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in map(default_slugify, heads):
                logging.getLogger(__name__).warning("%s has no heading %s", path.name, anchor)
        link = addnodes.pending_xref(
            "",
            *node.children,
            refdomain="doc",
            reftarget=page,
            reftargetid=anchor or None,
            refdoc=self.env.docname,
            reftype="myst",
            refexplicit=True,
        )
        node.replace_self(link)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
