"""Writes a NomicBert of CodeRankEmbed's shape but few layers, with random weights: `random_model.py <folder> <layers>`.

The tokenizer is not made here: the caller lays it beside.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, INNER, VOCABULARY = 768, 12, 3072, 30528

CONFIG = {
    "activation_function": "swiglu",
    "causal": False,
    "layer_norm_epsilon": 1e-12,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": WIDTH,
    "n_head": HEADS,
    "n_inner": INNER,
    "n_positions": 8192,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": VOCABULARY,
}
# Mean pooling: with "cls" our last layer computes one token only, which among few layers would weigh far more than
# among a real model's twelve.
POOLING = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def weights(layers: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)

    def matrix(rows: int, columns: int) -> np.ndarray:
        # Wider than the 0.02 of training's start, so that attention is not uniform and the layers matter.
        return random.standard_normal((rows, columns), dtype=np.float32) * 0.06

    def norm(name: str) -> dict[str, np.ndarray]:
        scale = 1 + random.standard_normal(WIDTH, dtype=np.float32) * 0.1
        return {f"{name}.weight": scale, f"{name}.bias": random.standard_normal(WIDTH, dtype=np.float32) * 0.1}

    tensors = {
        "embeddings.word_embeddings.weight": matrix(VOCABULARY, WIDTH),
        "embeddings.token_type_embeddings.weight": matrix(2, WIDTH),
        **norm("emb_ln"),
    }
    for layer in range(layers):
        prefix = f"encoder.layers.{layer}"
        tensors |= {
            f"{prefix}.attn.Wqkv.weight": matrix(3 * WIDTH, WIDTH),
            f"{prefix}.attn.out_proj.weight": matrix(WIDTH, WIDTH),
            f"{prefix}.mlp.fc11.weight": matrix(INNER, WIDTH),
            f"{prefix}.mlp.fc12.weight": matrix(INNER, WIDTH),
            f"{prefix}.mlp.fc2.weight": matrix(WIDTH, INNER),
            **norm(f"{prefix}.norm1"),
            **norm(f"{prefix}.norm2"),
        }
    return tensors


def main() -> None:
    folder, layers = Path(sys.argv[1]), int(sys.argv[2])
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": CONFIG | {"n_layer": layers},
        "1_Pooling/config.json": POOLING,
        "modules.json": MODULES,
        "sentence_bert_config.json": {"max_seq_length": 8192, "do_lower_case": False},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(weights(layers), folder / "model.safetensors")


if __name__ == "__main__":
    main()
