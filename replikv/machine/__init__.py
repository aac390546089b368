"""Replicated state, pure: bytes in, bytes out. No clock, no randomness, no settings, no I/O.

Whatever ``apply`` depends on is replicated state, so that equal logs make equal replicas, byte for byte.
"""
