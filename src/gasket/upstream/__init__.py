"""The HTTP/1.1 client to the backends: only what a gateway needs, with failures in words."""
