"""Where a redirect of a model's server leads its client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.relay.redirects import put_below

BASE = "/upstream/Model"
OWN = {"127.0.0.1:9001", "localhost:9001", "gpu-box:8080"}


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/login?a=b#c", f"{BASE}/login?a=b#c"),
        ("next", f"{BASE}/ui/next"),
        ("./", f"{BASE}/ui/"),
        ("../up", f"{BASE}/up"),
        ("?page=2", f"{BASE}/ui/here?page=2"),
        ("http://127.0.0.1:9001/x", f"{BASE}/x"),
        ("http://LOCALHOST:9001", f"{BASE}/"),
        ("https://gpu-box:8080/api/models", f"{BASE}/api/models"),  # as the client calls us
        # None climbs out of it, however a browser reads it.
        ("/../../upstream/Other/x", f"{BASE}/upstream/Other/x"),
        ("../../../../api/models", f"{BASE}/api/models"),
        ("/%2e%2e/%2E./api/models", f"{BASE}/api/models"),
        ("\\..\\..\\api", f"{BASE}/api"),
        ("/.\t./.\t./api", f"{BASE}/api"),
        ("http://[", f"{BASE}/"),
    ],
)
def test_what_leads_to_the_server_itself_stays_below_it(location: str, leads_to: str) -> None:
    assert put_below(location, "/ui/here?x=/", BASE, OWN) == leads_to


@pytest.mark.parametrize(
    "location",
    [
        "https://elsewhere.example/x",
        "//elsewhere.example/x",
        "http://127.0.0.1:9002/",
        "mailto:ann@example.org",
        # Each is the server itself, or the client's way to us, in another spelling.
        "http://127.1:9001/x",
        "http://127.0.0.1.:9001/x",
        "http://127.0.0.1:09001/x",
        "http://2130706433:9001/x",
        "http://u@127.0.0.1:9001/x",
    ],
)
def test_what_leads_elsewhere_or_in_another_spelling_leads_nowhere(location: str) -> None:
    assert put_below(location, "/ui/here?x=/", BASE, OWN) is None


@given(st.text("/.%2eE\\:?#@ab\t", max_size=30))
def test_no_path_leads_out_of_it(location: str) -> None:
    found = put_below(f"/{location.lstrip('/' + chr(92) + chr(9))}", "/ui/", BASE, OWN)
    if found is None:
        return
    assert found.startswith(f"{BASE}/")
    path = found.partition("?")[0].partition("#")[0].lower()
    parts = path.replace("%2e", ".").replace("\\", "/").replace("\t", "").split("/")
    assert not {".", ".."} & set(parts)
