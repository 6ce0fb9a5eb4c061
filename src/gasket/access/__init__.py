"""Access to the administration: tokens with names and roles."""
