"""The modes that a model can have: endpoints, probe, token usage."""

from manager.interfaces.base import Interface
from manager.interfaces.chat import Chat
from manager.interfaces.completion import Base
from manager.interfaces.embedding import Embedding
from manager.interfaces.reranker import Reranker

BUILT_IN: tuple[type[Interface], ...] = (Chat, Base, Embedding, Reranker)

__all__ = ["BUILT_IN", "Base", "Chat", "Embedding", "Interface", "Reranker"]
