"""llama.cpp's server out of the wheel ``xllamacpp``, with llama-server's names for its options.

    python scripts/llama_server.py -m MODEL.gguf --port 8081

It is what a model runs on that is added with the engine "llama.cpp of the demo models", and knows
those options that such a model has. For more, use llama.cpp's own llama-server.
"""

from __future__ import annotations

import argparse

from demo_server import begin, parameters, run


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True, help="the GGUF")
    parser.add_argument("--mmproj", default="", help="the GGUF of its image projector")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", choices=["127.0.0.1"], default="127.0.0.1")
    parser.add_argument("-c", "--ctx-size", type=int, default=0, help="0: as it was trained")
    parser.add_argument("-np", "--parallel", type=int, help="requests at a time; default: 4")
    parser.add_argument("-b", "--batch-size", type=int, default=2048)
    parser.add_argument("-ub", "--ubatch-size", type=int, default=512)
    parser.add_argument("-ctk", "--cache-type-k", default="f16")
    parser.add_argument("-ctv", "--cache-type-v", default="f16")
    parser.add_argument("-ngl", "--n-gpu-layers", type=int, default=-1)
    parser.add_argument("--threads-http", type=int, default=64)
    parser.add_argument("--embedding", "--embeddings", action="store_true")
    parser.add_argument("--pooling", choices=["none", "mean", "cls", "last", "rank"])
    parser.add_argument("--rerank", "--reranking", action="store_true", dest="reranking")
    return parser.parse_args()


def main() -> None:
    """Serve until a signal ends the process."""
    given = options()
    llama = begin()
    params = parameters(llama, given.model, given.port)
    params.n_ctx = given.ctx_size
    # Without a number of requests these share one cache, as llama-server has it.
    params.kv_unified = given.parallel is None
    params.n_parallel = given.parallel or params.n_parallel
    params.n_batch, params.n_ubatch = given.batch_size, given.ubatch_size
    for name, kind in (("cache_type_k", given.cache_type_k), ("cache_type_v", given.cache_type_v)):
        setattr(params, name, getattr(llama.ggml_type, f"GGML_TYPE_{kind.upper()}"))
    params.n_gpu_layers = given.n_gpu_layers
    params.n_threads_http = given.threads_http
    params.embedding = given.embedding or given.reranking
    if pooling := "rank" if given.reranking else given.pooling:
        kinds = llama.llama_pooling_type
        params.pooling_type = getattr(kinds, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    if given.mmproj:
        params.mmproj.path = given.mmproj
    run(llama, params)


if __name__ == "__main__":
    main()
