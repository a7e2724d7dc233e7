"""What the demo models' launch scripts share: one small GGUF, served by llama.cpp.

Each ``demo_*.py`` beside this file calls :func:`serve`. Set-up puts the GGUF at :data:`MODEL`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent / "data/models/SmolLM2-135M-Instruct.Q4_1.gguf"


def load_llama():
    """Return the module ``xllamacpp``.

    Raises ImportError, which says what to install, when it or a library that it needs is missing.
    """
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}. The demo models need: python3 scripts/setup.py, "
            "or pip install -r requirements-demo.txt"
        ) from error
    except ImportError as error:
        if "libgomp" not in str(error):
            raise
        # GCC's OpenMP runtime: on most machines, but not in every container's image.
        raise ImportError(
            f"{error}. The demo models need libgomp: on Debian and Ubuntu "
            "apt-get install libgomp1, on Fedora and RHEL dnf install libgomp"
        ) from error
    return xllamacpp


def begin():
    """Return ``xllamacpp``, to serve until a signal; exit with advice where it is missing."""
    # Both signals end the process at once, also while the model still loads, for which Python's
    # own handler of SIGINT would wait; of SIGTERM it has none.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return load_llama()
    except ImportError as error:
        sys.exit(str(error))


def parameters(llama, model, port):
    """The parameters of a server on loopback for this GGUF."""
    params = llama.CommonParams()
    params.model.path = str(model)
    params.model_alias = {os.environ.get("LLM_MANAGER_MODEL", "demo")}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = 4  # requests at a time; llama.cpp queues further ones
    params.n_threads_http = 64  # each open connection holds one; when all are held, /health waits
    params.fit_params = False  # fitting to the device's memory loads the model twice
    params.cache_ram_mib = 0  # else up to 8 GiB of finished prompts stay in memory
    return params


def run(llama, params):
    """Serve until a signal ends the process."""
    _server = llama.Server(params)  # serves while it lives
    threading.Event().wait()


def serve(pooling: str | None = None) -> None:
    """Serve the demo model on ``PORT`` until SIGTERM or Ctrl+C.

    With ``pooling`` ("mean" or "rank") it gives embeddings or rerank scores instead of text.
    """
    llama = begin()
    if not MODEL.is_file():
        sys.exit(f"{MODEL} is missing. To get it: python3 scripts/setup.py")
    params = parameters(llama, MODEL, int(os.environ["PORT"]))
    params.n_ctx = params.n_parallel * 2048  # tokens of context, shared out among the requests
    # The format that the model was trained on. The template in its file adds a system prompt, with
    # which this quantization answers "What is the capital of France?" in broken French.
    params.chat_template = "chatml"
    params.sampling.temp = 0.0  # unless the request says otherwise
    if pooling:
        params.embedding = True
        params.pooling_type = getattr(
            llama.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}"
        )
        params.n_ubatch = 2048  # a text must fit in one batch: as long as a slot's context
    run(llama, params)
