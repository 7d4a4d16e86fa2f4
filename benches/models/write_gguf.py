"""Writes a model folder's weights as a float32 GGUF file: `write_gguf.py <folder> <file.gguf> <cls|mean>`.

For what llama.cpp's `convert_hf_to_gguf.py`, which is no package, does with BERT and NomicBert. fc11 is llama.cpp's "up"
and fc12 its "gate".
"""

import json
import sys
from pathlib import Path

import gguf
from safetensors.numpy import load_file

PHANTOM_SPACE = "\u2581"


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict, size: int) -> None:
    """WordPiece as llama.cpp keeps it: a word's first piece is marked, not its others."""
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    tokens = [
        piece if id in special else piece[2:] if piece.startswith("##") else PHANTOM_SPACE + piece for piece, id in pieces
    ]
    types = [gguf.TokenType.CONTROL if id in special else gguf.TokenType.NORMAL for _, id in pieces]
    # The embedding table may be larger than the vocabulary.
    tokens += [f"[PAD{id}]" for id in range(len(tokens), size)]
    types += [gguf.TokenType.UNUSED] * (size - len(types))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("bert-bge")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    ids = {content: id for id, content in special.items()}
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])


def main() -> None:
    folder, target, pooling = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    config = json.loads((folder / "config.json").read_text())
    is_nomic = config["model_type"] == "nomic_bert"
    architecture = gguf.MODEL_ARCH.NOMIC_BERT if is_nomic else gguf.MODEL_ARCH.BERT

    def setting(nomic: str, bert: str):
        return config[nomic if is_nomic else bert]

    layers = setting("n_layer", "num_hidden_layers")
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(setting("n_positions", "max_position_embeddings"))
    writer.add_embedding_length(setting("n_embd", "hidden_size"))
    writer.add_feed_forward_length(setting("n_inner", "intermediate_size"))
    writer.add_block_count(layers)
    writer.add_head_count(setting("n_head", "num_attention_heads"))
    writer.add_layer_norm_eps(setting("layer_norm_epsilon", "layer_norm_eps"))
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS if pooling == "cls" else gguf.PoolingType.MEAN)
    if is_nomic:
        writer.add_rope_freq_base(config["rotary_emb_base"])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_tokenizer(writer, json.loads((folder / "tokenizer.json").read_text()), config["vocab_size"])

    names = gguf.get_tensor_name_map(architecture, layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        # Position ids are no weights, and the pooler plays no part in embeddings.
        if name.endswith("position_ids") or name.startswith("pooler."):
            continue
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise ValueError(f"GGUF has no name for {name}")
        writer.add_tensor(renamed, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
