"""A package has a small face: others take its names from its ``__init__``, not from its inside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    init.parent.relative_to(ROOT).as_posix().replace("/", "."): init
    for folder in ("manager", "routes", "jobs")
    for init in (ROOT / folder).rglob("__init__.py")
    if init.read_text(encoding="utf-8").count("import ")
}


def handed_on(init: Path) -> set[str]:
    """The names in a package's ``__all__``."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def imports_from_inside(file: Path) -> Iterator[str]:
    """The modules that a file imports from, of packages that it is not in."""
    own = file.parent.relative_to(ROOT).as_posix().replace("/", ".")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        package, _, module = node.module.rpartition(".")
        is_own = f"{own}.".startswith(f"{package}.")
        if is_own or package not in PACKAGES or node.module in PACKAGES:
            continue
        if module not in handed_on(PACKAGES[package]):
            yield node.module


@pytest.mark.parametrize("folder", ["manager", "routes", "jobs", "commands"])
def test_names_are_taken_from_the_face_of_a_package(folder: str) -> None:
    found = {
        file.relative_to(ROOT).as_posix(): inside
        for file in (ROOT / folder).rglob("*.py")
        if (inside := sorted(set(imports_from_inside(file))))
    }
    assert found == {}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_face_lists_what_it_hands_on(package: str) -> None:
    imported = {
        alias.asname or alias.name
        for node in ast.parse(PACKAGES[package].read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported - handed_on(PACKAGES[package]) - {"annotations"} == set()
