"""From a directory or hub id to the tensors in its files, under the names they are stored with.

A tensor is read on first access, so a process that maps its packed form never reads it.

Format of model.safetensors: the README of huggingface/safetensors (8 bytes little-endian header length, a JSON header
with dtype, shape and data_offsets of each tensor, then the data).
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilfast.errors import WeightsError
from distilfast.files import open_regular, parsed, read_object

_SAFETENSORS, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "modules.json",  # sentence-transformers: how token rows become one embedding
    "[0-9]*_*/config.json",  # 1_Pooling, 2_Dense, 2_Normalize, …
    "[0-9]*_Dense/model.safetensors",
    "sentence_bert_config.json",
    "sentence_roberta_config.json",  # the library's older names for the same, whatever the model
    "sentence_distilbert_config.json",
    "config_sentence_transformers.json",
    "adapter_config.json",  # peft: updates of another checkpoint
    "adapter_model.safetensors",
    _SAFETENSORS,
    _INDEX,
    "model-*-of-*.safetensors",
]
# Types numpy has; BF16 is the one that checkpoints use and numpy lacks.
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2"} | {
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


class Stored:
    """One tensor of a checkpoint: ``shape``, ``dtype`` as it is read, and ``array``, made on first use."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], np.ndarray]) -> None:
        """``make`` returns the array, C-contiguous, of this shape and dtype."""
        self.shape, self.dtype = shape, dtype
        self._make = make
        self._array: np.ndarray | None = None

    @classmethod
    def of(cls, make: Callable[[], np.ndarray]) -> Stored:
        """A tensor that no file holds."""
        array = make()
        return cls(array.shape, array.dtype, lambda: array)

    @classmethod
    def of_torch(cls, tensor: Any) -> Stored:
        """A torch tensor; 16-bit floats are widened, others keep their memory where it is in order."""
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.element_size() == 2:
            tensor = tensor.float()
        tensor = tensor.cpu().contiguous()
        return cls.of(tensor.numpy)

    @property
    def array(self) -> np.ndarray:
        """The values; read-only where they are a view of the mapped file."""
        if self._array is None:  # cached_property has a lock before Python 3.12, which a forked child could wait for
            self._array = self._make()
        return self._array


@dataclass(frozen=True)
class StoredFile:
    """A mapped file and its status when it was opened; replacing the path later changes neither."""

    path: Path
    status: os.stat_result
    data: mmap.mmap


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by stored name, and the files that hold them; no files where a pickle was read."""

    tensors: dict[str, Stored]
    files: tuple[StoredFile, ...] = ()


def resolve(
    model: str | Path, *, revision: str | None = None, local_files_only: bool = False, allow_pickle: bool = True
) -> Path:
    """The directory of ``model``: a local one as it is, a hub id through the hub's cache.

    ``HF_HUB_OFFLINE``, ``HF_HOME`` and the rest of the hub client's environment hold. Raises WeightsError.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise WeightsError(f"{model} is a file; a checkpoint's directory or hub id is needed.")
    name = str(model)
    if isinstance(model, Path) or name.startswith((".", "/", "~")) or not _is_hub_id(name):
        raise WeightsError(f"{model} does not exist; a checkpoint's directory or hub id is needed.")
    directory = _fetch(name, revision, local_files_only, _FILES)
    # Never fetch a pickle beside safetensors.
    folders = [directory, *directory.glob("[0-9]*_Dense")]
    pickles = [folder / _PICKLE for folder in folders if not any(folder.glob("*.safetensors"))]
    if pickles and allow_pickle:
        patterns = [str(pickle.relative_to(directory).as_posix()) for pickle in pickles]
        directory = _fetch(name, revision, local_files_only, [*_FILES, *patterns])
    return directory


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _fetch(name: str, revision: str | None, local_files_only: bool, patterns: list[str]) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, local_files_only=local_files_only, allow_patterns=patterns
            )
        )
    except Exception as error:  # the client lets errors of its HTTP library through
        wanted = f"{name!r}" if revision is None else f"{name!r} at revision {revision!r}"
        reason = _hub_reason(error, name, local_files_only)
        # Without the client's own errors, whose three tracebacks say no more.
        raise WeightsError(f"{wanted} is neither a local directory nor to be had from the hub: {reason}.") from None


def _beside(name: str) -> str:
    """What a mistyped path may have meant: the directories beside it."""
    folder = Path(name).parent
    if folder == Path() or not folder.is_dir():
        return ""
    found = sorted(each.name for each in folder.iterdir() if each.is_dir())[:5]
    return f"; here {folder} has {', '.join(found) or 'no directory'}"


def _hub_reason(error: Exception, name: str, local_files_only: bool) -> str:
    """Why, and what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub import utils as errors

    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        reason = f"it is not complete in the cache {constants.HF_HUB_CACHE}"
        if local_files_only:
            return f"{reason} and fetching is switched off"
        if constants.HF_HUB_OFFLINE:
            return f"{reason} and fetching is switched off; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
        advice = "HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror, and a local directory needs neither"
        return f"{reason} and {constants.ENDPOINT} did not answer; {advice}{_beside(name)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no such revision; {page}/tree/main lists them"
    if isinstance(error, errors.GatedRepoError):
        return f"access to it must be asked for at {page}, and then HF_TOKEN or `hf auth login` says who you are"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private, which needs HF_TOKEN or `hf auth login`"
    return _clause(error)


def open_checkpoint(directory: Path, *, allow_pickle: bool = True) -> Checkpoint:
    """The checkpoint in ``directory``; of its tensors only names, shapes and types are read.

    fp16 and bf16 are widened to float32, exactly; float32 tensors of a safetensors file are read-only views of the
    mapped file, which must not be overwritten in place while they are in use: a loaded backend has copies. Where there
    is no safetensors file, torch reads a pickle, tensors only, if ``allow_pickle``. Raises WeightsError naming the file
    that cannot be used.
    """
    if (directory / _SAFETENSORS).exists():
        return _open_safetensors(directory / _SAFETENSORS)
    if (directory / _INDEX).exists():
        return _open_shards(directory / _INDEX)
    if (directory / _PICKLE).exists() and not allow_pickle:
        raise WeightsError(f"{directory / _PICKLE} is a pickle, which is not allowed; convert it to {_SAFETENSORS}.")
    if (directory / _PICKLE).exists():
        return Checkpoint(_read_pickle(directory / _PICKLE))
    wanted = f"{_SAFETENSORS}, {_INDEX} or {_PICKLE}"
    raise WeightsError(f"{directory} has no {wanted}; save_pretrained of transformers writes the first.")


def open_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file; raises WeightsError."""
    if not path.exists():
        raise WeightsError(f"{path} does not exist.")
    return _open_safetensors(path).tensors


def _open_shards(index: Path) -> Checkpoint:
    weight_map = (read_object(index, WeightsError) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise WeightsError(f"{index} has no weight_map from tensors to files.")
    shards = []
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:  # an index must not lead out of its own directory
            raise WeightsError(f"{index} names {file!r}, which is not a plain file name.")
        if not (index.parent / file).exists():
            raise WeightsError(f"{index} names {file}, which does not exist.")
        shards.append(_open_safetensors(index.parent / file))
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    return Checkpoint(tensors, tuple(file for shard in shards for file in shard.files))


def _open_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(path, WeightsError) as file:
            with safe_open(str(path), framework="numpy"):
                pass  # it has checked every offset and shape against the size of the file
            status = os.fstat(file.fileno())
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (SafetensorError, OSError, ValueError) as error:
        raise _as_weights_error(path, error) from None
    start = 8 + int.from_bytes(data[:8], "little")
    header = parsed(data[8:start], str(path), WeightsError)
    header.pop("__metadata__", None)
    tensors = {name: _mapped_tensor(path, name, entry, data, start) for name, entry in header.items()}
    return Checkpoint(tensors, (StoredFile(path, status, data),))


def _as_weights_error(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, WeightsError):
        return error
    return WeightsError(f"{path} is not a complete safetensors file: {_clause(error)}; fetch or save it again.")


def _mapped_tensor(path: Path, name: str, entry: dict[str, Any], data: mmap.mmap, start: int) -> Stored:
    """One tensor of a header that safetensors has accepted."""
    dtype = entry["dtype"]
    if dtype not in _DTYPES:
        raise WeightsError(f"{path} stores {name} as {dtype}; F32, F16 and BF16 can be read.")
    shape, offset = tuple(entry["shape"]), start + entry["data_offsets"][0]

    def make() -> np.ndarray:
        array = np.frombuffer(data, _DTYPES[dtype], math.prod(shape), offset).reshape(shape)
        if dtype == "BF16":
            bits = array.astype(np.uint32)
            bits <<= 16  # bfloat16 is the upper half of a float32
            return bits.view(np.float32)
        if dtype == "F16":
            return array.astype(np.float32)
        return array if array.flags.aligned else array.copy()

    return Stored(shape, np.dtype(np.float32 if dtype in ("BF16", "F16") else _DTYPES[dtype]), make)


def _read_pickle(path: Path) -> dict[str, Stored]:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path} is a pickle and needs torch; install torch or convert it to {_SAFETENSORS}."
        ) from None
    open_regular(path, WeightsError).close()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: Stored.of_torch(tensor) for name, tensor in state.items()}
    except Exception as error:  # what torch raises for a bad or refused pickle is not documented
        raise WeightsError(f"{path} cannot be read as plain tensors by torch: {_clause(error)}.") from error


def _clause(error: Exception) -> str:
    """The first sentence of another library's message, quoted at the end of one of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".: ")
