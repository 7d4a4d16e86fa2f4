"""sentence-transformers on PyTorch."""

from importlib.metadata import version

import torch
from protocol import serve
from sentence_transformers import SentenceTransformer


def load(setup: dict):
    model = SentenceTransformer(setup["model"], local_files_only=True)
    name = f"sentence-transformers {version('sentence-transformers')}, PyTorch {torch.__version__}"
    device = "cpu" if model.device.type == "cpu" else "gpu"
    return name, device, lambda texts: model.encode(texts, batch_size=32, normalize_embeddings=True)


serve(load)
