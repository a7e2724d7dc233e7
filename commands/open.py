"""`llm-manager open`: the pages in a browser, signed in as admin by the local token."""

from __future__ import annotations

import argparse
import webbrowser
from typing import Any

from commands import options
from commands.client import Client


def add_to(commands: Any) -> None:
    """Adds the command to those of `add_subparsers`."""
    parser = options.command(
        commands, "open", _open, "open the pages of the running program, signed in as admin"
    )
    options.add_data_dir(parser)


def _open(arguments: argparse.Namespace) -> None:
    show_pages(Client(arguments.data_dir))


def show_pages(client: Client) -> None:
    """Opens them in a browser, or prints the link where there is none. Raises OSError."""
    link, page = client.sign_in_page()
    if webbrowser.open(page.as_uri()):
        print(f"opened {client.url} in a browser")
    else:
        print(f"no browser was found: open this link, once and within ten minutes: {link}")
