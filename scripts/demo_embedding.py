"""Launch script of Demo-Embedding: the mean of the last layer over a text's tokens."""

from demo_server import demo_params, serve
from xllamacpp import llama_pooling_type

params = demo_params()
params.embedding = True
params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
params.n_ubatch = 2048  # a text must fit in one batch: as long as a slot's context
serve(params)
