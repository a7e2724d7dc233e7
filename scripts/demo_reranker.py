"""Launch script of Demo-Reranker: answers as a reranker does, but its scores mean nothing.

The model has no ranking head, so llama.cpp gives one number of the last layer as the score. The
same settings make a real reranker's GGUF give real scores.
"""

from demo_server import demo_params, serve
from xllamacpp import llama_pooling_type

params = demo_params()
params.embedding = True
params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_RANK
params.n_ubatch = 2048  # query and document must fit in one batch: as long as a slot's context
serve(params)
