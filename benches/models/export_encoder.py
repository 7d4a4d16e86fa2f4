"""Exports the encoder of a model folder as an ONNX file for transformers.js: `python export_encoder.py <folder> <file>`."""

import sys

import torch
from transformers import AutoModel, AutoTokenizer

folder, target, *_ = sys.argv[1:]
model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
# Several texts of different lengths: what is 1 in the example is taken for a constant.
example = dict(tokenizer(["a text", "another text, which is longer"], padding=True, return_tensors="pt"))


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs).last_hidden_state


shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
torch.onnx.export(
    Encoder().eval(),
    (),
    target,
    kwargs=example,
    input_names=list(example),
    output_names=["last_hidden_state"],
    dynamic_shapes={"inputs": {name: shape for name in example}},
    external_data=False,
    verbose=False,
)
