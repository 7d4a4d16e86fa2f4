"""sentence-transformers on PyTorch in `setup["dtype"]`, or on OpenVINO where `setup["backend"]` says so. The fastest of
`setup["batchSizes"]` is taken.
"""

from importlib.metadata import version

from protocol import seconds, serve
from sentence_transformers import SentenceTransformer


class Embedder:
    def __init__(self, setup: dict):
        self.model = SentenceTransformer(
            setup["model"],
            local_files_only=True,
            backend=setup.get("backend", "torch"),
            model_kwargs={"dtype": setup["dtype"]} if "dtype" in setup else None,
        )
        self.batch_sizes = setup.get("batchSizes", [32])

    def embed(self, texts: list[str]):
        """The library sorts them by length."""
        return self.encode(texts, self.batch_sizes[-1])

    def encode(self, texts: list[str], batch_size: int):
        return self.model.encode(texts, batch_size=batch_size, normalize_embeddings=True)

    def prepare(self, texts: list[str]) -> None:
        """Tries the batch sizes once there are enough texts."""
        enough = max(self.batch_sizes)
        if len(self.batch_sizes) == 1 or len(texts) < enough:
            return
        times = {
            size: seconds(lambda some, size=size: self.encode(some, size), texts[:enough])["wall"]
            for size in self.batch_sizes
        }
        self.batch_sizes = [min(times, key=times.get)]


def load(setup: dict):
    embedder = Embedder(setup)
    libraries = ["sentence-transformers", "torch"]
    if setup.get("backend") == "openvino":
        libraries += ["optimum-intel", "openvino"]
    name = ", ".join(f"{library} {version(library)}" for library in libraries)
    device = "cpu" if embedder.model.device.type == "cpu" else "gpu"
    return name, device, embedder.embed, embedder.prepare


serve(load)
