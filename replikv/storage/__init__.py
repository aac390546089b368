"""Durability: the write-ahead log, snapshots, and the disk under them. Blocking, no trio."""
