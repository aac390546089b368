"""replikv: a replicated map inside your own processes."""

__version__ = "0.1.0.dev0"
