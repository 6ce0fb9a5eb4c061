"""Applying revisions: the session that holds the lock, the steps, and the tries of a step."""
