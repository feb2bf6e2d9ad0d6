"""Training, whatever is trained: `learner` says what loops ask for, `loops` has the three of them, `trainer` runs them.

`keeper` evaluates, keeps and rolls back, `evaluation` plays whole episodes, `ranking` compares, `videos` films.

Scripts put them together; algorithms don't know this package.
"""
