"""The revision files: what they declare, their digests, edits, and the rules they keep."""
