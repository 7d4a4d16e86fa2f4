"""OpenVINO for throughput: streams with sorted batches of 8. `setup["precision"]` is "bf16", over the folder's ONNX export, or
"int8", over what `../models/write_openvino.py` has made of it.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino as ov
from protocol import serve
from tokenizers import Tokenizer

BATCH_SIZE = 8
FILES = {"bf16": "onnx/model.onnx", "int8": "openvino/openvino_model_int8.xml"}


class Embedder:
    """Model and tokenizer."""

    def __init__(self, setup: dict):
        folder, precision = Path(setup["model"]), setup["precision"]
        hints = {"PERFORMANCE_HINT": "THROUGHPUT"}
        # What is not in int8 keeps OpenVINO's default: bfloat16 where the processor has it.
        if precision == "bf16":
            hints["INFERENCE_PRECISION_HINT"] = "bf16"
        compiled = ov.Core().compile_model(folder / FILES[precision], "CPU", hints)
        used = compiled.get_property("INFERENCE_PRECISION_HINT")
        if precision == "bf16" and used != ov.Type.bf16:
            raise ValueError(f"OpenVINO has no bfloat16 on this processor and takes {used.get_type_name()}")
        self.names = [port.any_name for port in compiled.inputs]
        self.queue = ov.AsyncInferQueue(compiled)
        self.queue.set_callback(self.keep)
        self.pooling = setup["pooling"]
        self.width = compiled.outputs[0].partial_shape[2].get_length()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(setup["maxTokens"])

    def embed(self, texts: list[str]) -> np.ndarray:
        """The longest first, so that the streams end at about the same time."""
        ids = [one.ids for one in self.tokenizer.encode_batch(texts)]
        order = np.argsort([-len(row) for row in ids], kind="stable")
        self.vectors = np.empty((len(texts), self.width), np.float32)
        for start in range(0, len(texts), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            feeds = self.feeds([ids[index] for index in batch])
            self.queue.start_async({name: feeds[name] for name in self.names}, (batch, feeds["attention_mask"]))
        self.queue.wait_all()
        return self.vectors

    @staticmethod
    def feeds(ids: list[list[int]]) -> dict[str, np.ndarray]:
        """Each `[batch, length]`, padded at the end."""
        shape = len(ids), max(map(len, ids))
        matrix, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, tokens in enumerate(ids):
            matrix[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": matrix, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}

    def keep(self, request: ov.InferRequest, given: tuple[np.ndarray, np.ndarray]) -> None:
        """Pools and normalizes the states of a batch, `[batch, length, width]`."""
        batch, mask = given
        states = request.get_output_tensor(0).data
        # The mean is not divided by the number of tokens: the vector is scaled to length 1 anyway.
        pooled = states[:, 0] if self.pooling == "cls" else (mask[:, None].astype(np.float32) @ states)[:, 0]
        self.vectors[batch] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def load(setup: dict):
    name = f"OpenVINO {version('openvino')}, tokenizers {version('tokenizers')}"
    return name, "cpu", Embedder(setup).embed


serve(load)
