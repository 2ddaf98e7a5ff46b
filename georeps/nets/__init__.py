"""What networks are made of and how they are trained: trunks, poolings, losses, the training loop.

A method of one paper is not here (`papers`), nor is data. Imports from `core`.
"""
