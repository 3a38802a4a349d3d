"""What a matrix becomes: pure functions on tensors, no files and no models.

Shape legend of this folder: M out_features, N in_features (rows and columns of a matrix), P tile
rows, Q tile columns, R rank.
"""
