"""README and docs/: what they link to is there, and what they list is complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CODE = ("manager", "routes", "jobs", "commands")
README_BYTES = 8192


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as a link calls them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_readme_is_short(name: str) -> None:
    assert (ROOT / name).stat().st_size <= README_BYTES


def test_the_table_of_contents_has_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose(index))}
    assert {page.name for page in ROOT.glob("docs/*.md")} - {"index.md"} <= linked


def thread_names() -> Iterator[tuple[str, str | None]]:
    """Where a thread is made, and how its name begins; None where it has none."""
    for file in sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "threading.Thread"):
                continue
            where = f"{file.relative_to(ROOT)}:{node.lineno}"
            name = next((word.value for word in node.keywords if word.arg == "name"), None)
            first = name.values[0] if isinstance(name, ast.JoinedStr) else name
            if isinstance(first, ast.Constant):
                yield where, str(first.value)
            elif name is None:
                yield where, None


def test_every_thread_has_a_name_that_the_table_of_threads_has() -> None:
    table = (ROOT / "docs" / "threads.md").read_text(encoding="utf-8")
    names = list(thread_names())
    assert names
    for where, name in names:
        assert name is not None, f"{where}: a thread without a name"
        assert f"`{name}" in table, f"{where}: {name} is not in docs/threads.md"
