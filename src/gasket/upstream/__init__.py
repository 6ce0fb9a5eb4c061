"""The HTTP/1.1 client to the backends: as little between two sockets as a gateway needs, and failures in words."""
