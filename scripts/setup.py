"""Makes .venv and installs into it what the program needs.

    python3 scripts/setup.py          to run the program and its demo models
    python3 scripts/setup.py --dev    to test it as well

Needs Python's standard library and a package index, nothing else. What is done already is not done
again: .venv/setup.json tells, and is written after each step, so that a set-up that was interrupted
goes on where it stopped.
"""

import hashlib
import json
import os
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

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STATE = VENV / "setup.json"
# A venv is bound to its Python and, through the paths in its scripts, to its place.
IDENTITY = "{}.{} {}".format(*sys.version_info[:2], VENV)

RUN_FILES = ["requirements.txt", "requirements-demo.txt"]
DEV_FILES = [*RUN_FILES, "requirements-dev.txt"]


class SetupError(Exception):
    """A step failed; the message says what the user can do."""


def step(text: str) -> None:
    print(f"==> {text}", flush=True)


def run(command: list, advice: str, **options: object) -> subprocess.CompletedProcess:
    """Run a program that shows its own output; SetupError with the advice if it fails."""
    result = subprocess.run(command, **options)
    if result.returncode:
        raise SetupError(f"{advice} (its own message is above)")
    return result


def read_state() -> dict:
    try:
        return json.loads(STATE.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_state(state: dict) -> None:
    draft = STATE.with_suffix(".tmp")
    draft.write_text(json.dumps(state, indent=1), encoding="utf-8")
    draft.replace(STATE)


def venv_answers(*arguments: str) -> str:
    """Return what the venv's Python prints when run with these arguments, or "" if it fails."""
    try:
        return subprocess.run(
            [str(PYTHON), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def make_venv(replace: bool) -> None:
    """Make .venv, or complete one that is there; one of another Python is replaced in any case."""
    step("Making .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
    version = "{}.{}".format(*sys.version_info[:2])
    same = venv_answers("-c", "import sys; print('{}.{}'.format(*sys.version_info))") == version
    clear = ["--clear"] if VENV.exists() and (replace or not same) else []
    run(
        [sys.executable, "-m", "venv", "--without-pip", *clear, str(VENV)],
        "Python could not make .venv. Where its venv module is missing, install that: on Debian "
        "and Ubuntu, apt-get install python3-venv",
    )


def install_pip() -> None:
    """Put pip into the venv: Python's own copy, or where the system left that out, the index's."""
    if venv_answers("-m", "pip", "--version"):
        return
    if venv_answers("-m", "ensurepip", "--default-pip"):
        return
    step("This Python comes without pip: fetching it from the package index")
    # Here, not above: it takes a while to import, and hardly any set-up needs it.
    from fetch_pip import FetchError, fetch_pip

    advice = (
        "Name a package index that this machine can reach in PIP_INDEX_URL, its certificate "
        "authority in PIP_CERT if it has its own; or on Debian, apt-get install python3-venv"
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            wheel = fetch_pip(Path(folder))
        except FetchError as error:
            raise SetupError(f"{error}. {advice}") from error
        # A wheel is a zip file, and Python runs what lies in one.
        run([str(PYTHON), f"{wheel}/pip", "install", "--no-index", str(wheel)], advice)


def install_requirements(files: list) -> None:
    step(f"Installing {', '.join(files)} (the demo models make it about 300 MB, once)")
    options = [word for file in files for word in ("-r", str(ROOT / file))]
    pip("install", *options)
    if sys.platform == "linux":
        provide_libgomp()


def pip(*arguments: str) -> None:
    run(
        [str(PYTHON), "-m", "pip", *arguments],
        "pip could not install everything. Run the same again once that is mended; what was "
        "fetched is kept. Behind a mirror or a proxy, set PIP_INDEX_URL or HTTPS_PROXY",
        # With PIP_USER, or its line in pip.conf, pip refuses a venv.
        env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )


def provide_libgomp() -> None:
    """Put libgomp into the venv if the system has none for llama.cpp's wheel, which needs it.

    It is GCC's OpenMP runtime, so that a machine without a compiler may lack it. Many wheels carry
    a copy, scikit-learn's for one; only that file is taken. ``demo_server`` knows where it is.
    """
    probe = [str(PYTHON), "-c", "import xllamacpp"]
    if "libgomp.so.1" not in subprocess.run(probe, capture_output=True, text=True).stderr:
        return
    step("This system comes without libgomp: taking the copy in scikit-learn's wheel")
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--only-binary", ":all:", "-d", folder, "scikit-learn")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            library = next(name for name in wheel.namelist() if "/libgomp-" in name)
            (VENV / "lib" / "libgomp.so.1").write_bytes(wheel.read(library))


def assemble_model() -> str:
    """Return the path of the demo models' GGUF."""
    step("Putting the demo model together")
    result = run(
        [str(PYTHON), str(ROOT / "scripts" / "demo_server.py")],
        "The demo model could not be put together. It takes 250 MB of disk in data/models",
        stdout=subprocess.PIPE,
        text=True,
    )
    return result.stdout.strip()


def set_up(files: list) -> None:
    state = read_state()
    before = json.dumps(state)
    if state.get("venv") != IDENTITY or not PYTHON.exists():
        make_venv(replace=bool(state))
        install_pip()
        state = {"venv": IDENTITY, "requirements": {}, "model": ""}
        write_state(state)
    wanted = {file: hashlib.sha256((ROOT / file).read_bytes()).hexdigest() for file in files}
    if not wanted.items() <= state["requirements"].items():
        install_requirements(files)
        state["requirements"].update(wanted)
        write_state(state)
    if not Path(state["model"]).is_file():
        state["model"] = assemble_model()
        write_state(state)
    if json.dumps(state) != before:
        step("Set-up is done")


def main() -> int:
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
        print("\nSet-up interrupted. Run the same again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
