"""Smaller models: pruning, quantization, and the packed file that holds the result.

Works on plain tensors and state dicts. `packed` (and what it imports) reads and writes files with NumPy alone.
"""
