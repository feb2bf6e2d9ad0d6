"""Training, whatever is trained: `learner` says what loops ask for, `loops` has the three of them, `trainer` runs them.

Scripts put them together; algorithms don't know this package.
"""
