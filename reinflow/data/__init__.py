"""Demonstrations and replayed experience, as batches of tensors on the learner's device.

formats/ read recordings, experts/ and collect.py make them, chunks.py cuts them into windows, replay.py keeps what an
env gave. Scripts, the planner and training loops import it; algorithms, families and envs don't, nor does it them.
"""
