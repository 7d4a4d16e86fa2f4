"""fastembed for Python over the folder's ONNX export."""

import json
from importlib.metadata import version
from pathlib import Path

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from protocol import serve


def load(setup: dict):
    folder = Path(setup["model"])
    config = json.loads((folder / "config.json").read_text())
    TextEmbedding.add_custom_model(
        model="measured",
        pooling=PoolingType.CLS if setup["pooling"] == "cls" else PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(url="none"),
        dim=config.get("n_embd") or config["hidden_size"],
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("measured", specific_model_path=str(folder))
    return f"fastembed {version('fastembed')}", "cpu", lambda texts: list(model.embed(texts, batch_size=32))


serve(load)
