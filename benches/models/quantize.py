"""Quantizes an ONNX file as `model_quantized.onnx` files on the Hub are made: `quantize.py <model.onnx> <target>`.

As transformers.js's conversion script for "q8": dynamic quantization, signed 8-bit weights, one scale per tensor.
"""

import sys

from onnxruntime.quantization import QuantType, quantize_dynamic

source, target = sys.argv[1:3]
options = {"EnableSubgraph": True, "MatMulConstBOnly": True}
quantize_dynamic(source, target, weight_type=QuantType.QInt8, extra_options=options)
