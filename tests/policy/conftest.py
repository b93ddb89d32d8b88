from pathlib import Path

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
