"""How much a key or a profile may do, on all replicas together: requests a minute, tokens in a window, at once."""
