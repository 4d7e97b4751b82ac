"""One architecture a file; every one passes tests/contract.py."""
