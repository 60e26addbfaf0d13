"""The pages: their code runs, their links have targets, and their figures are those of the saved
runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import latent_kernels as lk
import pages
from tests.processes import ROOT

README, DOCS = ROOT / "README.md", ROOT / "docs"


def code_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


SNIPPETS = code_of(README)
WITH_CODE = [page for page in sorted(DOCS.glob("**/*.md")) if code_of(page)]
# The pages of this repository: but for those in docs/'s folders, whose links Sphinx checks, and for
# what a demo, a build or pytest has written, on which workers of pytest-xdist would not agree.
PAGES = sorted(
    page
    for pattern in ("*.md", "*/*.md", "kernels/*/*.md")
    for page in ROOT.glob(pattern)
    if not re.match(r"\.|demo$|build$|dist$", page.relative_to(ROOT).parts[0])
)


@pytest.mark.parametrize("code", SNIPPETS, ids=range(len(SNIPPETS)))
def test_what_the_readme_shows_runs(code: str) -> None:
    """Each piece of code runs by itself, with warnings as errors, as in all these tests."""
    torch.manual_seed(0)
    assert len(code.splitlines()) <= 8, "the README shows short pieces"
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_shows_runs(page: Path) -> None:
    """The pieces of code of a page run one after the other, and share their names."""
    if page.name == "pyro.md":
        pytest.importorskip("pyro")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for code in code_of(page):
        exec(compile(code, page.name, "exec"), names)


def test_every_public_name_stands_in_the_api_pages() -> None:
    listed = [
        name
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^   (\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(listed) == sorted(lk.__all__)


def test_the_readme_is_one_screen() -> None:
    assert len(SNIPPETS) == 4
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        path, _, place = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} is not there"
        if place:
            heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            names = [re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads]
            assert place in names, f"{target}: {linked.name} has no such heading"


def test_figures_are_those_of_the_saved_runs() -> None:
    """The figures are what `python bench/pages.py` writes; a row of the README that no run has
    fails, too.
    """
    for path, text in pages.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"run bench/pages.py: {path.name} is old"
    for name in pages.HEADLINES.values():
        assert f"| {name} |" in README.read_text(encoding="utf-8")
