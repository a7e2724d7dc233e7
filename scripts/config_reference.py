"""Writes what is made from the declarations of the config's keys: `make reference`.

That is config.schema.json, and the tables of docs/config.md between their marks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from manager.config import schema

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "config.schema.json"
PAGE = ROOT / "docs" / "config.md"


def schema_text() -> str:
    """All of config.schema.json."""
    return json.dumps(schema.json_schema(), indent=2, ensure_ascii=False) + "\n"


def page_text(before: str) -> str:
    """The page with the tables of now in the places of those that it has."""
    for name, cls in schema.TABLES.items():
        begin, end = f"<!-- keys of {name} -->", f"<!-- end of {name} -->"
        made = f"{begin}\n{schema.table(cls)}{end}"
        before, count = re.subn(f"{begin}.*?{end}", lambda _, made=made: made, before, flags=re.S)
        if count != 1:
            raise ValueError(f"{PAGE.name} has to have {begin} and {end} once")
    return before


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
