"""The command line: `secateur demo | inspect | prune | bench | report`. It alone maps names to objects."""

from secateur.cli.app import main

__all__ = ["main"]
