"""Searches with keras-tuner in which every trial is a run folder."""
