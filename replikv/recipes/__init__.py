"""Recipes: what applications build on a replicated map, built on the public names of ``replikv`` alone.

Copy one to make your own: there is no private door in any of them.
"""

from replikv.recipes.barrier import Barrier, Passage
from replikv.recipes.counter import Counter
from replikv.recipes.election import Elected, Election, Leader, Leaders
from replikv.recipes.lock import Lock
from replikv.recipes.queue import Delivery, Queue, QueueStatistics
from replikv.recipes.read_write_lock import ReadWriteLock
from replikv.recipes.registry import Balancer, Endpoint, EndpointWatch, NoEndpointError, Registration, ServiceRegistry
from replikv.recipes.semaphore import Semaphore

__all__ = [
    "Balancer",
    "Barrier",
    "Counter",
    "Delivery",
    "Elected",
    "Election",
    "Endpoint",
    "EndpointWatch",
    "Leader",
    "Leaders",
    "Lock",
    "NoEndpointError",
    "Passage",
    "Queue",
    "QueueStatistics",
    "ReadWriteLock",
    "Registration",
    "Semaphore",
    "ServiceRegistry",
]
