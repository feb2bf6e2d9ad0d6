"""A run on disk: its directory, status, progress and metrics.

Scripts, training and sweeps import it; it knows nothing that learns or simulates.
"""
