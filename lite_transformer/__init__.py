"""Lite Transformer with Long-Short Range Attention, as a fairseq plugin.

Give this folder to fairseq as ``--user-dir``. Importing it loads neither torch nor fairseq:
fairseq imports ``models`` and ``tasks`` itself, and Python users import the subpackage they need.
"""

__version__ = "0.1.0"
