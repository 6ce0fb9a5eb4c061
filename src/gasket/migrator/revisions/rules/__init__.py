"""The rules that every revision keeps."""
