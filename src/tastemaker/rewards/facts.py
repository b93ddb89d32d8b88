"""What is known of rewards that bring networks of others: where they lie, how large they are, on which terms. No torch.

Commits are those that several public projects name for these weights (of the aesthetic head, one); where none could be
made sure of it is None.
"""

from __future__ import annotations

from typing import NamedTuple

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Published(NamedTuple):
    """A network of the hub, as far as a reward reads it."""

    name: str  # owner/name
    megabytes: int  # of what is downloaded
    revision: str | None = None  # the commit that is meant, where it is known
    weights: tuple[str, ...] = WEIGHTS  # what its weights may be called: the first that is there is read
    needed: tuple[str, ...] = ("config.json",)  # files beside them
    welcome: tuple[str, ...] = ()  # files that are read if they are there


class Facts(NamedTuple):
    """What a user wants to know before a reward's networks are downloaded."""

    networks: tuple[Published, ...]
    licence: str
    cite: str
    install: str = "nothing beside Tastemaker"
    held: str = "come with what is installed"  # where its weights are, if there are none to download
    small: str = ""  # what `--reward.model shapes` is instead


_LARGE = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
_TOKENS = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
CLIP_LARGE = Published(_LARGE[0], 1711, _LARGE[1], welcome=("tokenizer.json", *_TOKENS))
# One vocabulary serves all CLIPs here: that of OpenAI's.
TOKENIZER = Published(_LARGE[0], 4, _LARGE[1], ("tokenizer.json", "vocab.json"), (), _TOKENS)
AESTHETIC_HEAD = Published(
    "trl-lib/ddpo-aesthetic-predictor", 4, "cf4bd10345610935a80a5d3be9a3133c50f121e4", ("aesthetic-model.pth",), ()
)
PICKSCORE = Published("yuvalkirstain/PickScore_v1", 3944, "a4e4367c6dfa7288a00c550414478f865b875800")
_HPS = ("xswu/HPSv2", 1972, "697403c78157020a1ae59d23f111aa58ced35b0a")
HPS = {
    "v2.0": Published(*_HPS, weights=("HPS_v2_compressed.pt",), needed=()),
    "v2.1": Published(*_HPS, weights=("HPS_v2.1_compressed.pt",), needed=()),
}
IMAGE_REWARD = Published("THUDM/ImageReward", 1787, "5736be03b2652728fb87788c9797b0570450ab72", ("ImageReward.pt",), ())
BERT_WORDS = Published(
    "google-bert/bert-base-uncased",
    1,
    "86b5e0934494bd15c9632b12f734a8a67f723594",
    ("vocab.txt", "tokenizer.json"),
    (),
    ("tokenizer_config.json",),
)
_DETECTOR = ("tokenizer.json", *_TOKENS, "vocab.txt", "preprocessor_config.json")
OWL = Published(
    "google/owlv2-base-patch16-ensemble", 620, "cfd3195ba4ea9592eec887ded089f4c08eff231d", welcome=_DETECTOR
)
GROUNDING_DINO = Published(
    "IDEA-Research/grounding-dino-tiny", 689, "a2bb814dd30d776dcf7e30523b00659f4f141c71", welcome=_DETECTOR
)

# Its size is that of its 750 million weights in half precision: the file itself was not seen.
DEBERTA = Published("microsoft/deberta-xlarge-mnli", 1500, welcome=("tokenizer.json", *_TOKENS))

_SMALL = "a CLIP that comes with the package (2 MB) and knows the built-in world alone"

# Rewards that are not here are the project's own: under its licence, with nothing to download.
FACTS: dict[str, Facts] = {
    "aesthetic": Facts(
        (CLIP_LARGE, AESTHETIC_HEAD),
        "Apache-2.0 (head), MIT (CLIP)",
        "Schuhmann 2022, github.com/christophschuhmann/improved-aesthetic-predictor; Radford et al. 2021, "
        "arXiv:2103.00020",
        small=f"{_SMALL}, with a head for `shapes_taste`",
    ),
    "clip_score": Facts(
        (CLIP_LARGE,),
        "MIT",
        "Hessel et al. 2021, arXiv:2104.08718; Radford et al. 2021, arXiv:2103.00020",
        small=_SMALL,
    ),
    "pickscore": Facts(
        (PICKSCORE, TOKENIZER),
        "MIT (code); the terms of the weights were not verified: read their page",
        "Kirstain et al. 2023, arXiv:2305.01569",
        small=f"{_SMALL}, at its own scale; nobody chose between its pictures",
    ),
    "hpsv2": Facts((HPS["v2.0"], TOKENIZER), "Apache-2.0", "Wu et al. 2023, arXiv:2306.09341"),
    "image_reward": Facts((IMAGE_REWARD, BERT_WORDS), "Apache-2.0", "Xu et al. 2023, arXiv:2304.05977"),
    "counting": Facts(
        (OWL,), "Apache-2.0", "Ghosh et al. 2023, arXiv:2310.11513; Minderer et al. 2023, arXiv:2306.09683"
    ),
    "ocr": Facts((), "Apache-2.0", "RapidOCR, github.com/RapidAI/RapidOCR", "pip install 'tastemaker[ocr]'"),
    "vlm": Facts(
        (DEBERTA,),
        "MIT (the text network of `describe`; no other mode needs it); the served model's own",
        "Black et al. 2023, arXiv:2305.13301; Zhang et al. 2019, arXiv:1904.09675",
        "nothing beside Tastemaker; the model's server is yours",
    ),
    "remote": Facts(
        (),
        "that of the reward that is served",
        "the reward that is served",
        "nothing beside Tastemaker here; there pip install 'tastemaker[serve]'",
        held="are the server's",
    ),
    "isolated": Facts(
        (),
        "that of what is installed",
        "whose reward it is",
        "nothing beside Tastemaker; its packages go into an environment of their own",
        held="are those of what is installed",
    ),
    "rotation_invariance": Facts((CLIP_LARGE,), "MIT", "Black et al. 2023, arXiv:2305.13301"),
    "thumbnail": Facts((CLIP_LARGE,), "MIT", "Black et al. 2023, arXiv:2305.13301"),
    "trained": Facts(
        (),
        "that of the network and of the labels that it was trained on",
        "Radford et al. 2021, arXiv:2103.00020, or the network that it was trained on",
        held="are its folder's, and those of the CLIP that it was trained on",
    ),
}
