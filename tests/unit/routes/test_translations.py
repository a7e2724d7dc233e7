"""The pages in other languages: nothing is left out, and what is filled in stays to be filled."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import translations  # noqa: E402 - the script beside the program

LANGUAGES = sorted(path.parent.name for path in translations.FOLDER.glob("*/LC_MESSAGES"))


def blanks(text: str) -> list[str]:
    """The places of a sentence that are filled in, as {name} or %(name)s."""
    return sorted(re.findall(r"\{\w+\}|%\(\w+\)s", text))


def test_there_is_chinese() -> None:
    assert LANGUAGES == ["zh"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_of_the_pages_is_translated(language: str) -> None:
    known = {message.id: message.string for message in translations.read(language) if message.id}
    assert [word for word in translations.words() if not known.get(word)] == []
    assert sorted(known) == translations.words()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_same_blanks(language: str) -> None:
    for message in translations.read(language):
        assert blanks(str(message.string)) == blanks(str(message.id)), message.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_program_reads_is_what_is_written(language: str) -> None:
    folder = translations.FOLDER / language / "LC_MESSAGES"
    text = (folder / "messages.po").read_bytes()
    assert text == translations.po(translations.updated(language))
    assert (folder / "messages.mo").read_bytes() == translations.mo(text)


def test_every_word_that_a_script_says_is_there() -> None:
    keys = set(
        re.findall(r'^\s+"(\w+)": _\(', (ROOT / "routes" / "pages" / "words.py").read_text(), re.M)
    )
    said: set[str] = set()
    for script in (ROOT / "static").glob("*.js"):
        said |= set(re.findall(r'\bsay\("(\w+)"', script.read_text()))
    assert said - keys == set()
