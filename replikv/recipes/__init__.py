"""Recipes: what applications build on a replicated map, built once, on the public API alone."""

from replikv.recipes.queue import Delivery, Queue, QueueStatistics
from replikv.recipes.registry import Balancer, Endpoint, EndpointWatch, NoEndpointError, Registration, ServiceRegistry

__all__ = [
    "Balancer",
    "Delivery",
    "Endpoint",
    "EndpointWatch",
    "NoEndpointError",
    "Queue",
    "QueueStatistics",
    "Registration",
    "ServiceRegistry",
]
