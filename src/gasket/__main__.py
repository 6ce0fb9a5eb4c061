"""The command line: Litestar's, with this application preset."""
