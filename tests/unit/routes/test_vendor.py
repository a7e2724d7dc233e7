"""Other people's files are those of the version that is written beside them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[3] / "static" / "vendor"


def test_every_vendored_file_has_the_checksum_of_its_version() -> None:
    rows = re.findall(
        r"^\| `(\S+)` \| .+ \| [\d.]+ \| .+`(\S+)` \| `([0-9a-f]{64})` \|$",
        (VENDOR / "README.md").read_text(),
        re.M,
    )
    declared = {name: checksum for name, _, checksum in rows}
    assert all((VENDOR / licence).is_file() for _, licence, _ in rows)
    assert declared == {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name not in ("README.md", "LICENSE")
    }
