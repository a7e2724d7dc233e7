"""The pages in other languages: no text is left out, and each keeps its placeholders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "translations"
LANGUAGES = sorted(path.parent.name for path in FOLDER.glob("*/LC_MESSAGES"))
METHODS = [("**.py", "python"), ("**.html", "jinja2")]  # those of pyproject.toml


def texts() -> list[str]:
    """All texts of the pages, in English."""
    return sorted(
        {
            str(message)
            for folder in ("routes", "templates")
            for _, _, message, _, _ in extract_from_dir(ROOT / folder, METHODS)
        }
    )


def read(language: str) -> Catalog:
    with (FOLDER / language / "LC_MESSAGES" / "messages.po").open("rb") as file:
        return read_po(file, locale=language)


def placeholders(text: str) -> list[str]:
    """The parts of a text that are filled in, as {name} or %(name)s."""
    return sorted(re.findall(r"\{\w+\}|%\(\w+\)s", text))


def test_there_is_chinese() -> None:
    assert LANGUAGES == ["zh"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_the_pages_is_translated(language: str) -> None:
    known = {str(message.id): message.string for message in read(language) if message.id}
    assert [text for text in texts() if not known.get(text)] == []
    assert sorted(known) == texts()  # else: make translations


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_same_placeholders(language: str) -> None:
    for message in read(language):
        assert placeholders(str(message.string)) == placeholders(str(message.id)), message.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_program_reads_is_compiled_from_what_is_written(language: str) -> None:
    with (FOLDER / language / "LC_MESSAGES" / "messages.mo").open("rb") as file:
        compiled = {str(message.id): message.string for message in read_mo(file) if message.id}
    written = {str(message.id): message.string for message in read(language) if message.id}
    assert compiled == written  # else: make translations


def test_every_text_that_a_script_asks_for_is_there() -> None:
    texts_of_scripts = (ROOT / "routes" / "pages" / "words.py").read_text()
    keys = set(re.findall(r'^\s+"(\w+)": _\(', texts_of_scripts, re.M))
    asked: set[str] = set()
    for script in (ROOT / "static").glob("*.js"):
        asked |= set(re.findall(r'\bsay\("(\w+)"', script.read_text()))
    assert asked - keys == set()
