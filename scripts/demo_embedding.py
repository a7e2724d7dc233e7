"""Launch script of Demo-Embedding: the mean of the last layer over a text's tokens.

The model was not trained for it, so its embeddings mean nothing.
"""

from demo_server import serve

serve(pooling="mean")
