"""The runtime of one peer: consensus, storage, transport and the replica, driven by one task."""
