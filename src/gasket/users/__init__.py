"""What is kept of one person, who is known by an address: shown, and erased."""
