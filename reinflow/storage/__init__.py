"""What is written to last: checkpoints, states to resume from, sealed files.

Scripts, training and evaluation import it; policies, algorithms, envs and data do not know that they are stored.
"""
