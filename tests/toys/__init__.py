"""What adding a thing takes: one file each, registered by one line in `tests/test_extension.py`."""
