"""Training: the loop, its steps, checkpoints, the run folder and the model files."""

from tagmask.training.folder import RunFolder, environment
from tagmask.training.loop import Trained, make_fabric, readers, train_method
from tagmask.training.model_files import load_model, save_model, supervision
from tagmask.training.step import rate

__all__ = [
    "RunFolder",
    "Trained",
    "environment",
    "load_model",
    "make_fabric",
    "rate",
    "readers",
    "save_model",
    "supervision",
    "train_method",
]
