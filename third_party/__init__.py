"""Bridges from other projects: their checkpoints in this project's form. `da` never imports this package."""
