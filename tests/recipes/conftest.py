"""Model directories that recipe tests share."""

from pathlib import Path

import pytest

from tests.recipes.model_directories import write_guessing_model, write_random_model


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """Never right."""
    directory = tmp_path_factory.mktemp("random_model")
    write_random_model(directory)
    return directory


@pytest.fixture(scope="session")
def guessing_model(tmp_path_factory) -> Path:
    """Answers 3 or 7 to anything."""
    directory = tmp_path_factory.mktemp("guessing_model")
    write_guessing_model(directory)
    return directory
