"""Revisions tried out on a scratch database: what they lock and rewrite, and what a schema would look like."""
