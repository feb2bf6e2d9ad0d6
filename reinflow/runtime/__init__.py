"""What every process needs to run at all: files, signals, seeds, its siblings, CUDA graphs.

The bottom of the house: everybody may import it, and it imports nothing of ours but itself and `reinflow.errors`.
"""
