"""Exact search, densities and geometry, and their kernels: tensors in, tensors out.

What lives here knows no image, no network's training, no paper and no data set; the files it knows are its own (`cache`, `embeddings`). It imports
nothing of georeps but itself.
"""
