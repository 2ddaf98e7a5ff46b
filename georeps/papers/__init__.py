"""The methods, one paper a file: modules and training steps that take tensors and give tensors.

They know no data set, no embedded world and no chapter. Import from `core` and `nets`.
"""
