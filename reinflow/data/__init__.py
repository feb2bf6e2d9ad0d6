"""Demonstrations and replayed experience, as batches of tensors on the learner's device.

formats/ read recordings, which places.py finds and tempo.py may make faster, chunks.py cuts them into windows,
replay.py keeps what an env gave. Scripts, `recording` and training loops import it; algorithms, families and envs
don't, nor does it them.
"""
