"""Engines: the programs that run a model, and what to write into the config for them."""

from manager.engines.fit import CONTEXTS, Fit, Need, Target, what_fits
from manager.engines.llama_cpp import llama_server_command
from manager.engines.offer import Offer, engines_for, offer
from manager.engines.presets import BY_ID, ENGINES, Engine
from manager.engines.proposal import Proposal, ProposalError, propose

__all__ = [
    "BY_ID",
    "CONTEXTS",
    "ENGINES",
    "Engine",
    "Fit",
    "Need",
    "Offer",
    "Proposal",
    "ProposalError",
    "Target",
    "engines_for",
    "llama_server_command",
    "offer",
    "propose",
    "what_fits",
]
