"""Checkpoints of the field, recognised by the names and shapes of their tensors: one file for each
family.
"""
