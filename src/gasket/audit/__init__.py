"""Who did what: the entries, which triggers of the database write with each change."""
