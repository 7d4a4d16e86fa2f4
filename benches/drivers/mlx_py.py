"""NomicBert on Python's MLX as a Python user would write it: `mlx.nn` layers, `mlx.fast` attention, the model's own weight
names. Independent of the Rust code.
"""

import json
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from protocol import serve
from tokenizers import Tokenizer

BATCH_SIZE = 32


class Attention(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width = config["n_embd"]
        self.heads = config["n_head"]
        self.scale = (width // self.heads) ** -0.5
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.rope = nn.RoPE(width // self.heads, base=config["rotary_emb_base"])

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        batch, length, width = x.shape
        # Three of [batch, heads, length, head_dim].
        q, k, v = (
            part.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
            for part in mx.split(self.Wqkv(x), 3, axis=-1)
        )
        mixed = mx.fast.scaled_dot_product_attention(self.rope(q), self.rope(k), v, scale=self.scale, mask=mask)
        return self.out_proj(mixed.transpose(0, 2, 1, 3).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.fc11 = nn.Linear(config["n_embd"], config["n_inner"], bias=False)
        self.fc12 = nn.Linear(config["n_embd"], config["n_inner"], bias=False)
        self.fc2 = nn.Linear(config["n_inner"], config["n_embd"], bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.fc11(x) * nn.silu(self.fc12(x)))


class Layer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = FeedForward(config)
        self.norm1 = nn.LayerNorm(config["n_embd"], eps=config["layer_norm_epsilon"])
        self.norm2 = nn.LayerNorm(config["n_embd"], eps=config["layer_norm_epsilon"])

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        x = self.norm1(x + self.attn(x, mask))
        return self.norm2(x + self.mlp(x))


class NomicBert(nn.Module):
    def __init__(self, config: dict, pooling: str):
        super().__init__()
        self.pooling = pooling
        self.word_embeddings = nn.Embedding(config["vocab_size"], config["n_embd"])
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], config["n_embd"])
        self.emb_ln = nn.LayerNorm(config["n_embd"], eps=config["layer_norm_epsilon"])
        self.layers = [Layer(config) for _ in range(config["n_layer"])]

    def __call__(self, ids: mx.array, is_real: mx.array | None) -> mx.array:
        """`ids` and `is_real` (false for padding; None without any) are `[batch, length]`. Unit vectors."""
        mask = None if is_real is None else is_real[:, None, None, :]
        # Every token is of type 0.
        x = self.emb_ln(self.word_embeddings(ids) + self.token_type_embeddings.weight[0])
        for layer in self.layers:
            x = layer(x, mask)
        if self.pooling == "cls":
            pooled = x[:, 0]
        elif is_real is None:
            pooled = x.mean(axis=1)
        else:
            weights = is_real[:, :, None].astype(x.dtype)
            pooled = (x * weights).sum(axis=1) / weights.sum(axis=1)
        return pooled / mx.linalg.norm(pooled, axis=-1, keepdims=True)


class Embedder:
    """Model and tokenizer."""

    def __init__(self, setup: dict):
        folder = Path(setup["model"])
        config = json.loads((folder / "config.json").read_text())
        if config["model_type"] != "nomic_bert":
            raise ValueError(f"this driver computes nomic_bert only, not {config['model_type']}")
        self.model = NomicBert(config, setup["pooling"])
        weights = mx.load(str(folder / "model.safetensors"))
        prefixes = ("embeddings.", "encoder.")
        renamed = [(name.removeprefix(prefixes[0]).removeprefix(prefixes[1]), array) for name, array in weights.items()]
        self.model.load_weights(renamed)
        self.model.eval()
        mx.eval(self.model.parameters())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(setup["maxTokens"])
        self.tokenizer.enable_padding()

    def forward(self, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizer.encode_batch(texts)
        ids = mx.array([one.ids for one in encoded])
        is_real = [one.attention_mask for one in encoded]
        is_padded = any(0 in row for row in is_real)
        return np.array(self.model(ids, mx.array(is_real, dtype=mx.bool_) if is_padded else None))

    def embed(self, texts: list[str]) -> np.ndarray:
        """As sentence-transformers does it: sorted by characters, longest first, then batches of 32."""
        order = np.argsort([-len(text) for text in texts], kind="stable")
        batches = (order[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE))
        vectors = np.concatenate([self.forward([texts[index] for index in batch]) for batch in batches])
        return vectors[np.argsort(order)]


def load(setup: dict):
    device = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    return f"mlx {version('mlx')}, tokenizers {version('tokenizers')}", device, Embedder(setup).embed


serve(load)
