"""Benchmarks that anybody can repeat: kerasnet beside its peers, in the same run.

A machine's speed drifts by more than the differences of interest, so contestants take turns, round
by round, and are compared within each round.

Importing this package imports neither TensorFlow nor Keras nor PyTorch.
"""
