"""Raft without I/O: input goes in, and what must be persisted, sent and applied comes out as data.

No clock, no randomness of its own, no logging, nothing but the standard library. References are to Ongaro's thesis
("Consensus: Bridging Theory and Practice", 2014) and to the paper ("In Search of an Understandable Consensus
Algorithm", 2014).
"""
