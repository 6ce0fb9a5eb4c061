"""Gasket: an API gateway for OpenAI-compatible inference backends that migrates its own schema."""
