"""Launch script of Demo-Reranker: answers as a reranker does, but its scores mean nothing.

The model has no ranking head, so llama.cpp gives one number of the last layer as the score. The
same settings make a real reranker's GGUF give real scores.
"""

from demo_server import serve

serve(pooling="rank")
