"""NomicBert on Python's MLX as a Python user would write it, and a contestant of `run.mjs`.

Independent of the Rust code: `mlx.nn` layers, `mlx.fast` attention, the model's own weight names.

As a contestant: `python_mlx.py <model folder> <tasks.json>`. It reads one request a line and answers with one line; see
`run.mjs` for the protocol.
"""

import json
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
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
    def __init__(self, config: dict):
        super().__init__()
        self.word_embeddings = nn.Embedding(config["vocab_size"], config["n_embd"])
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], config["n_embd"])
        self.emb_ln = nn.LayerNorm(config["n_embd"], eps=config["layer_norm_epsilon"])
        self.layers = [Layer(config) for _ in range(config["n_layer"])]

    def __call__(self, ids: mx.array, is_real: mx.array | None) -> mx.array:
        """`ids` and `is_real` (false for padding; None without any) are `[batch, length]`. Unit vectors, mean-pooled."""
        mask = None if is_real is None else is_real[:, None, None, :]
        # Every token is of type 0.
        x = self.emb_ln(self.word_embeddings(ids) + self.token_type_embeddings.weight[0])
        for layer in self.layers:
            x = layer(x, mask)
        if is_real is None:
            pooled = x.mean(axis=1)
        else:
            weights = is_real[:, :, None].astype(x.dtype)
            pooled = (x * weights).sum(axis=1) / weights.sum(axis=1)
        return pooled / mx.linalg.norm(pooled, axis=-1, keepdims=True)


class Contestant:
    """Model and tokenizer, and the ways to embed that are measured."""

    def __init__(self, folder: Path, max_tokens: int):
        self.model = NomicBert(json.loads((folder / "config.json").read_text()))
        weights = mx.load(str(folder / "model.safetensors"))
        prefixes = ("embeddings.", "encoder.")
        renamed = [(name.removeprefix(prefixes[0]).removeprefix(prefixes[1]), array) for name, array in weights.items()]
        self.model.load_weights(renamed)
        self.model.eval()
        mx.eval(self.model.parameters())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_tokens)
        self.tokenizer.enable_padding()

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Ids and attention mask, padded to the longest of `texts`."""
        encoded = self.tokenizer.encode_batch(texts)
        return [one.ids for one in encoded], [one.attention_mask for one in encoded]

    def forward(self, ids: list[list[int]], is_real: list[list[int]] | None) -> np.ndarray:
        mask = None if is_real is None else mx.array(is_real, dtype=mx.bool_)
        return np.array(self.model(mx.array(ids), mask))

    def embed(self, texts: list[str]) -> np.ndarray:
        """Batches of 32 in the order of the texts."""
        batches = (texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE))
        return np.concatenate([self.forward(*self.tokenize(batch)) for batch in batches])

    def embed_sorted(self, texts: list[str]) -> np.ndarray:
        """As sentence-transformers does it: sorted by characters, longest first, then batches of 32."""
        order = np.argsort([-len(text) for text in texts], kind="stable")
        vectors = self.embed([texts[index] for index in order])
        return vectors[np.argsort(order)]

    def prepare(self, task: dict):
        """What a task times, as a function without arguments."""
        texts = task["texts"]
        if task["tokens"] is None:
            embed = self.embed_sorted if task["sorted"] else self.embed
            return lambda: embed(texts)
        ids, _ = self.tokenize(texts)
        assert all(len(row) == task["tokens"] for row in ids), "not the number of tokens that was asked for"
        return lambda: self.forward(ids, None)


def blas() -> list[str]:
    """BLAS libraries of this process."""
    maps = Path("/proc/self/maps")
    paths = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    return sorted(Path(path).name for path in paths if "blas" in Path(path).name)


def answers(folder: Path, setup: dict, requests: Iterator[str]) -> Iterator[object]:
    contestant = Contestant(folder, setup["maxTokens"])
    device = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    name = f"mlx {version('mlx')}, numpy {np.__version__}, tokenizers {version('tokenizers')}"
    yield {"name": f"Python {sys.version.split()[0]}, {name}", "device": device, "blas": blas()}
    prepared = [contestant.prepare(task) for task in setup["tasks"]]
    for line in requests:
        request = json.loads(line)
        run = prepared[request["task"]]
        if request["want"] == "vectors":
            yield run().tolist()
            continue
        runs = request["runs"]
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(runs):
            run()
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        yield {"wall": wall / runs, "cpu": cpu / runs}


def main() -> None:
    folder, setup = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    for answer in answers(folder, setup, sys.stdin):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
