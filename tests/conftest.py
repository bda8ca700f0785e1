"""Shared by all tests: one thread a process, a cache of their own, and the real photos where they are present."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Read when torch is imported, here and in processes that tests start. xdist's controller needs no torch: it is not
# imported in this file.
os.environ["OMP_NUM_THREADS"] = "1"

# What was found in photos by their content is kept in a cache. Matplotlib's takes seconds to make.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tagmask-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

HERE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def msrc() -> Path:
    """Folder of the real photos, or skip."""
    path = Path(os.environ.get("TAGMASK_MSRC", HERE.parent / "shared" / "data" / "msrc"))
    if not path.is_dir():
        pytest.skip(f"real photos are absent ({path}); set TAGMASK_MSRC")
    return path


@pytest.fixture(scope="session")
def resnet_weights() -> Path:
    """ImageNet weights of ResNet-50 (layout v1), or skip."""
    folder = Path(os.environ.get("TAGMASK_WEIGHTS", HERE.parent / "shared" / "weights"))
    path = folder / "resnet50_v1_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"ResNet-50 weights are absent ({path}); set TAGMASK_WEIGHTS")
    return path
