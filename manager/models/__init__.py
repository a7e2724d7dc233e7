"""The models' life: the fleet, leases, starts and stops, processes and ports."""

from manager.models import ports
from manager.models.fleet import Fleet
from manager.models.lease import Lease
from manager.models.model import Model, State
from manager.models.ports import Ports
from manager.models.scheme_memory import SchemeMemory
from manager.models.server import ModelDependencies, Server

__all__ = [
    "Fleet",
    "Lease",
    "Model",
    "ModelDependencies",
    "Ports",
    "SchemeMemory",
    "Server",
    "State",
    "ports",
]
