"""What downgrades take away: kept in a schema of its own, and put back when the revision is applied again."""
