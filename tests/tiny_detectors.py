"""Tiny detectors with random weights, saved in the exact layout that transformers loads: for tests of loading."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    SwinConfig,
)

SIDE = 32  # of a picture as OWLv2 sees it, in patches of 8
EDGES = (64, 96)  # of a picture as Grounding DINO sees it
BOXES = 12  # of Grounding DINO
DOT = 1012  # Grounding DINO knows its stops by their numbers


def owl(folder: Path, seed: int = 0) -> Path:
    """OWLv2: 16 boxes a picture."""
    config = Owlv2Config(
        text_config={
            "vocab_size": 514, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 16,
        },
        vision_config={
            "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 8,
        },
        projection_dim=16,
    )  # fmt: skip
    _saved(Owlv2ForObjectDetection, config, folder, seed)
    letters = sorted(ByteLevel.alphabet())
    tokens = ["!", *(x for x in letters if x != "!"), *(f"{x}</w>" for x in letters)]
    vocab = {token: n for n, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=vocab, merges=[], pad_token="!").save_pretrained(folder)
    return folder


def grounding_dino(folder: Path, seed: int = 0) -> Path:
    """Grounding DINO over a Swin and a BERT of two layers each."""
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4,
        out_features=["stage1", "stage2"],
    )  # fmt: skip
    bert = BertConfig(
        vocab_size=1100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128,
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, num_queries=BOXES, encoder_layers=1, decoder_layers=2, d_model=32,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        num_feature_levels=3, max_text_len=128,
    )  # fmt: skip
    _saved(GroundingDinoForObjectDetection, config, folder, seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": DOT}
    known |= {letter: 200 + n for n, letter in enumerate(letters)}
    known |= {f"##{letter}": 300 + n for n, letter in enumerate(letters)}
    names = {n: name for name, n in known.items()}
    (folder / "vocab.txt").write_text("\n".join(names.get(n, f"[unused{n}]") for n in range(1100)) + "\n")
    BertTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    size = {"shortest_edge": EDGES[0], "longest_edge": EDGES[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    return folder


def _saved(kind: Any, config: Any, folder: Path, seed: int) -> None:
    """With weights large enough for boxes and scores to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(config).eval()
        for name, value in network.named_parameters():
            if value.ndim > 1 and "embedding" not in name:
                torch.nn.init.normal_(value, std=0.3)
    network.save_pretrained(folder)
