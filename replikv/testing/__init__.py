"""What holds clusters, and your own transports, storages and machines, to their contracts."""
