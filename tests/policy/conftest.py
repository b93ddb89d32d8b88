from pathlib import Path

import huggingface_hub.constants
import pytest

import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny eps-model."""
    return str(tiny.save(tmp_path_factory.mktemp("tiny") / "eps"))


@pytest.fixture(scope="session")
def v_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny v-model over latents of 6 channels."""
    folder: Path = tmp_path_factory.mktemp("tiny") / "v"
    return str(tiny.save(folder, prediction_type="v_prediction", latent_channels=6))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network, as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"
