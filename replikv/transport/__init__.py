"""How frames get from peer to peer: the base class, one in memory for tests, one over TCP."""
