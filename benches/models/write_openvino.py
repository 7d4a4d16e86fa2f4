"""Writes a model folder's ONNX export as OpenVINO files, float32 and int8: `write_openvino.py <folder> <target folder>`.

int8 is NNCF's post-training quantization, calibrated on functions of NNCF's own source code, which the benchmark does not
embed.
"""

import ast
import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from tokenizers import Tokenizer

TEXTS = 48


def functions() -> list[str]:
    """Taken evenly from all functions of the package."""
    found = []
    for file in sorted(Path(nncf.__file__).parent.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
        found += [ast.get_source_segment(source, node) for node in nodes]
    return found[:: len(found) // TEXTS][:TEXTS]


folder, target = map(Path, sys.argv[1:3])
limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(limit)


def feeds(text: str) -> dict[str, np.ndarray]:
    ids = np.array([tokenizer.encode(text).ids])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


model = ov.Core().read_model(folder / "onnx/model.onnx")
# Its name is the one that sentence-transformers looks for.
ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
dataset = nncf.Dataset(functions(), feeds)
quantized = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=TEXTS)
ov.save_model(quantized, target / "openvino_model_int8.xml", compress_to_fp16=False)
