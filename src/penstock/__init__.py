"""Penstock: model serving and model governance behind one front door.

Publishing a model in Python needs only what this module exports; `penstock serve my_model.py` runs it.
"""

from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.models import model
from penstock.core.tensors import TensorSpec as Tensor

__all__ = ["InvalidInput", "PenstockError", "Tensor", "model"]
__version__ = "0.1.0"
