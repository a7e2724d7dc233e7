"""Brings translations/ up to date with the words of the pages: `make translations`.

New words are added to each language's messages.po with nothing behind them, words that are gone are
taken out, and messages.mo, which the program reads, is made anew. Needs the program's packages.
"""

from __future__ import annotations

import io
import sys
from datetime import datetime, timezone
from pathlib import Path

from babel.messages import mofile, pofile
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir

ROOT = Path(__file__).resolve().parent.parent
NO_DATE = datetime(2000, 1, 1, tzinfo=timezone.utc)
FOLDER = ROOT / "translations"
# Where words stand. Each is asked for with `_`.
SOURCES = {"routes": [("**.py", "python")], "templates": [("**.html", "jinja2")]}


def words() -> list[str]:
    """All that the pages say, in English."""
    found = set()
    for folder, methods in SOURCES.items():
        for _, _, message, _, _ in extract_from_dir(
            ROOT / folder, method_map=methods, keywords={"_": None}
        ):
            assert isinstance(message, str)  # no plurals are asked for
            found.add(message)
    return sorted(found)


def read(language: str) -> Catalog:
    """What a language's messages.po has."""
    path = FOLDER / language / "LC_MESSAGES" / "messages.po"
    if not path.exists():
        return Catalog(locale=language)
    with path.open("rb") as file:
        return pofile.read_po(file, locale=language)


def updated(language: str) -> Catalog:
    """It with the words of now."""
    before = read(language)
    after = Catalog(locale=language, charset="utf-8", fuzzy=False)
    for word in words():
        known = before.get(word)
        after.add(word, known.string if known else "")
    return after


def po(catalog: Catalog) -> bytes:
    """The text for messages.po; without dates, so that nothing changes where no word does."""
    text = io.BytesIO()
    pofile.write_po(text, catalog, width=100, omit_header=True, sort_output=True)
    head = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n'
    return f'{head}"Language: {catalog.locale}\\n"\n\n'.encode() + text.getvalue()


def mo(text: bytes) -> bytes:
    """What the program reads, made of messages.po."""
    compiled = io.BytesIO()
    catalog = pofile.read_po(io.BytesIO(text))
    catalog.creation_date = catalog.revision_date = NO_DATE  # else it is another file each minute
    mofile.write_mo(compiled, catalog)
    return compiled.getvalue()


def main() -> int:
    missing = 0
    for folder in sorted(FOLDER.glob("*/LC_MESSAGES")):
        catalog = updated(folder.parent.name)
        text = po(catalog)
        (folder / "messages.po").write_bytes(text)
        (folder / "messages.mo").write_bytes(mo(text))
        for message in catalog:
            if message.id and not message.string:
                print(f"{folder.parent.name}: nothing for {message.id!r}")
                missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
