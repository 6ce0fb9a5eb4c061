"""Schema management that needs no operator. Of Gasket it imports `postgres`, `logs` and `log_lines` alone.

docs/architecture.md says what each file and each folder here is for. Read `runner` first.
"""
