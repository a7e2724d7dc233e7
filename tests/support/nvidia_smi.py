"""Stands in for ``nvidia-smi``: prints the cards of the JSON file that FAKE_NVIDIA_SMI names.

``Cards`` in ``cards.py`` writes that file and puts a copy of this one on PATH. Its keys:

- ``cards``: a list of ``{"name", "total", "used", "reserved", "util", "temp", "index", "uuid"}``,
  memory in MiB; null and what is missing but for the name is printed as ``[N/A]``. Free memory is
  what neither ``used`` nor ``reserved`` (by the driver, 0) takes. ``index`` is the place in the
  list. ``real`` is how much there is of a card whose ``total`` is not printed: it stops model
  servers.
- ``held``: a folder of files ``*.json`` with ``{"pid", "card", "mb"}``, written by model servers:
  each adds to the ``used`` of the card with that ``index`` while its process lives, and for
  ``linger`` seconds after it was first seen dead, as a driver gives memory back with a lag.
- ``delay``: seconds before it answers.
- ``hang``: "until changed" waits until the file is another, "for ever" until whoever called it
  is gone; "with a child" does so with a further process, which holds its output open and
  stays for a minute unless it is ended as well.
- ``text``, ``code``: printed and returned in place of an answer. ``warning``: printed behind it.

Each call appends a line with its time, epoch seconds, to the file with ``.calls`` behind its name.

It is run once a second and more, so that it imports next to nothing: run it with ``python -SE``.
"""

import os
import sys
import time


def read(path):
    # JSON with Python's own words for three of its names; importing json takes as long as
    # all the rest of this program.
    with open(path, encoding="utf-8") as file:
        names = {"__builtins__": {}, "null": None, "true": True, "false": False}
        return eval(file.read(), names)


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def takes_memory(path, pid, linger):
    """Whether the process holds what it said in the file, or has not given it back yet."""
    if lives(pid):
        return True
    # Made at the first sight of its death; opening it again leaves its time as it is.
    os.close(os.open(path + ".dead", os.O_CREAT | os.O_WRONLY))
    return time.time() - os.stat(path + ".dead").st_mtime < linger


def held(folder, linger):
    """MiB by the index of the card."""
    used = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if name.endswith(".json"):
            path = os.path.join(folder, name)
            entry = read(path)
            if takes_memory(path, entry["pid"], linger):
                used[entry["card"]] = used.get(entry["card"], 0) + entry["mb"]
    return used


def wait(how, path, before):
    """Until the file is another than when ``before`` was its state, or the caller is gone."""
    if how == "with a child" and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    parent = os.getppid()
    while True:
        now = os.stat(path)
        is_changed = (now.st_ino, now.st_mtime_ns) != (before.st_ino, before.st_mtime_ns)
        if (how == "until changed" and is_changed) or os.getppid() != parent:
            return
        time.sleep(0.02)


def values(card, index, more):
    total, used = card.get("total"), card.get("used")
    used = None if used is None else used + more
    is_known = total is not None and used is not None
    return {
        "index": index,
        "uuid": card.get("uuid", f"GPU-{index:08}"),
        "utilization.gpu": card.get("util"),
        "memory.total": total,
        "memory.used": used,
        "memory.free": max(0, total - used - card.get("reserved", 0)) if is_known else None,
        "driver_version": "550.90.07",
        "name": card["name"],
        "gpu_serial": None,
        "display_active": "Disabled",
        "display_mode": "Disabled",
        "temperature.gpu": card.get("temp"),
    }


def main():
    path = os.environ["FAKE_NVIDIA_SMI"]
    with open(path + ".calls", "a", encoding="utf-8") as calls:
        calls.write(f"{time.time():.6f}\n")
    before = os.stat(path)  # before it is read, so that no change is missed
    play = read(path)
    time.sleep(play.get("delay", 0))
    if play.get("hang"):
        wait(play["hang"], path, before)
        play = read(path)
    if play.get("text") is not None:
        print(play["text"])
        return play.get("code", 0)
    queries = [word for word in sys.argv[1:] if word.startswith("--query-gpu=")]
    if not queries or "--format=csv,noheader,nounits" not in sys.argv:
        print("the stand-in knows --query-gpu=... with --format=csv,noheader,nounits only")
        return 2
    more = held(play["held"], play.get("linger", 0)) if "held" in play else {}
    for place, card in enumerate(play["cards"]):
        index = card.get("index", place)
        known = values(card, index, more.get(index, 0))
        row = [known[name] for name in queries[0].partition("=")[2].split(",")]
        print(", ".join("[N/A]" if value is None else str(value) for value in row))
    if not play["cards"]:
        print("No devices were found")
        return 6
    if "warning" in play:
        print(play["warning"])
    return play.get("code", 0)


if __name__ == "__main__":
    sys.exit(main())
