"""The dict-like face of the replicated map: reads of the local replica, operations, watches, subscriptions.

It knows the peer by a small protocol only (``replicator.py``). The public path of its names is ``replikv``.
"""
