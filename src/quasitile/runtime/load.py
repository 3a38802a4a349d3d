"""Loading and saving of whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils.hub import cached_file

from quasitile.checkpoint.shards import (
    read_remainders,
    stored_bytes,
    tensor_headers,
    weight_files,
    write_remainders,
    write_shards,
)
from quasitile.errors import InputError
from quasitile.progress import say
from quasitile.runtime.device import CPU, put_on
from quasitile.runtime.execution import execution as executing
from quasitile.runtime.layers import compressible_layers, input_embedding
from quasitile.runtime.linear import TiledMatrix, tiled_matrices
from quasitile.runtime.lora import adapter_base, adapter_bytes, open_lora
from quasitile.runtime.plugin import METHOD, describe, finish_folder, tied_heads

AUTO_CLASSES = (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModel)


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises:
        InputError: There is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except Exception as error:  # the tokenizers library has no exception of its own
        raise InputError(f"{model} has no tokenizer that Transformers can load: {_first_line(error)}") from error
    for circumstance in ("is_local", "local_files_only"):  # how it was found here, which Transformers would save with it
        tokenizer.init_kwargs.pop(circumstance, None)
    return tokenizer


def load_model(
    model: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    execution: str = "dense",
    cache_bytes: int = 0,
    memory_bytes: int | None = None,
    device: torch.device = CPU,
) -> tuple[Any, Any]:
    """A model in evaluation mode, and its tokenizer.

    It is of the class that its configuration names: a causal or masked language model, an encoder
    without a head, or any other class of Transformers. Where that names none, a causal language model.

    Args:
        model: A Hugging Face folder, a hub name, a folder that quasitile wrote, or an adapter of PEFT, which is put on the
            model that it names.
        dtype: Of the arithmetic.
        execution: How coded layers compute, see `quasitile.runtime.execution.Execution`.
        cache_bytes: See there.
        memory_bytes: See there.
        device: Where it computes; what its forward pass is given is moved there.

    Raises:
        InputError: It cannot be loaded whole.
    """
    if (base := adapter_base(model)) is not None:
        try:
            loaded, tokenizer = load_model(
                base, dtype, execution=execution, cache_bytes=cache_bytes, memory_bytes=memory_bytes, device=device
            )
        except InputError as error:
            raise InputError(f"{model} is an adapter for {base} (base_model_name_or_path): {error}") from error
        return open_lora(loaded, model), tokenizer
    check_local(model)
    try:
        config = load_config(model)
        with executing(execution, cache_bytes, memory_bytes):
            loaded, report = model_class(config).from_pretrained(str(model), dtype=dtype, output_loading_info=True)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{model} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"{model} lacks {len(missing)} tensors ({missing[0]}, ...); the model would be partly random, copy it again"
        )
    stored_dtype = getattr(config, "dtype", None) or torch.bfloat16
    if not isinstance(stored_dtype, torch.dtype):
        raise InputError(f"{model}: config.json has the dtype {stored_dtype!r}; mend config.json")
    loaded.storage_dtypes = storage_dtypes(uncoded(loaded), stored_dtype)
    tokenizer = load_tokenizer(model)
    check_vocabulary(model, loaded, tokenizer.vocab_size)
    if device != CPU:
        put_on(loaded, device)
    return loaded.eval(), tokenizer


def check_vocabulary(model: str | Path, loaded: Any, num_tokens: int) -> None:
    """Refuse a tokenizer that gives tokens which the embedding does not have.

    Args:
        model: Its folder or hub name, for the message.
        loaded: The model.
        num_tokens: One more than the largest token.

    Raises:
        InputError: The embedding has fewer rows.
    """
    table = input_embedding(loaded)
    rows = getattr(table, "num_embeddings", num_tokens)
    if num_tokens > rows:
        raise InputError(
            f"{model}: the tokenizer gives {num_tokens} tokens and the embedding has {rows} rows; "
            "they are not of the same model, copy the tokenizer that belongs to it"
        )


def load_config(model: str | Path) -> Any:
    """The configuration of a model folder, of a `config.json`, or of a hub name.

    Raises:
        InputError: There is none that Transformers knows.
    """
    path = Path(model)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json; give a model folder in the Hugging Face layout")
    if not path.exists() and looks_local(model):
        raise InputError(f"{path} does not exist; give a model folder, a config.json or a hub name")
    try:
        return AutoConfig.from_pretrained(str(model))
    except (StrictDataclassError, TypeError, AttributeError, ArithmeticError) as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"{model} has a configuration that contradicts itself: {line}; mend config.json") from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{model} has no configuration that Transformers can load: {_first_line(error)}") from error


def meta_model(config: Any) -> Any:
    """The model of a configuration, on the meta device: shapes and no weights, whatever its size.

    Raises:
        InputError: The configuration contradicts itself.
    """
    chosen = model_class(config)
    build = getattr(chosen, "from_config", None) or chosen._from_config
    try:
        with torch.device("meta"):
            return build(config).eval()
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise InputError(f"no model can be built from this configuration: {_first_line(error)}; mend config.json") from error


def model_class(config: Any) -> Any:
    """The class that loads a model: an Auto class, or the class of Transformers that the configuration names."""
    names = getattr(config, "architectures", None) or []
    for auto in AUTO_CLASSES:
        classes = auto._model_mapping.get(type(config), ())
        classes = classes if isinstance(classes, (list, tuple)) else (classes,)
        if any(getattr(each, "__name__", None) in names for each in classes):
            return auto
    named = getattr(transformers, names[0], None) if names else None
    return named if hasattr(named, "from_pretrained") else AutoModelForCausalLM


def storage_dtypes(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """In which dtype each tensor beside the matrices is stored: the checkpoint's where that is exact, else its own.

    Args:
        tensors: See `uncoded`, as loaded, before any training.
        dtype: The checkpoint's.

    Returns:
        Name -> dtype, and `""` -> the checkpoint's.
    """
    dtypes = {"": dtype}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            exact = torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)
            dtypes[name] = dtype if exact else tensor.dtype
    return dtypes


def uncoded(model: Any, chosen: set[str] | None = None) -> dict[str, Tensor]:
    """What is stored of a model beside its matrices, coded or still to be coded; tied tensors once.

    Args:
        model: Coded or not.
        chosen: Of a model that is not: the matrices that will be coded. Nothing means all.
    """
    others = {f"{name}.payload" for name, module in model.named_modules() if isinstance(module, TiledMatrix)}
    if not others:
        layers, tied = compressible_layers(model)
        if chosen is not None:
            layers = {name: place for name, place in layers.items() if name in chosen}
            tied = {head: source for head, source in tied.items() if source in chosen}
        others = {f"{place.path}.{place.parameter}" for place in layers.values()} | {f"{name}.weight" for name in tied}
    others |= set(getattr(model, "all_tied_weights_keys", None) or {})
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in others}


def check_local(model: str | Path) -> None:
    """Look at a local folder before Transformers does, whose messages speak of the hub.

    Raises:
        InputError: It looks like a path, but is no folder with weights and a configuration.
    """
    path = Path(model)
    if path.exists() or looks_local(model):
        weight_files(path)
        if not (path / "config.json").is_file():
            raise InputError(f"{path} has no config.json; give a model folder in the Hugging Face layout")
        tensor_headers(path)


def looks_local(model: str | Path) -> bool:
    """Whether a name can only be a path."""
    return Path(model).is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") > 1


def model_folder(location: str | Path) -> Path:
    """Where a loaded model's files lie: its folder, or that of a hub name in the local cache."""
    if Path(location).is_dir():
        return Path(location)
    config = cached_file(str(location), "config.json")
    assert config is not None  # the model was loaded from there
    return Path(config).parent


def weight_bytes(model: str | Path) -> int:
    """Bytes of a model's weight files; of an adapter's, and those of the model that it needs."""
    base = adapter_base(model)
    return stored_bytes(model_folder(model)) if base is None else adapter_bytes(model) + weight_bytes(base)


def is_compressed(model: str | Path) -> bool:
    """Whether a folder or hub name holds a model that quasitile wrote."""
    check_local(model)
    config = load_config(model)
    return is_compressed_config(config)


def is_compressed_config(config: Any) -> bool:
    """Whether a configuration is that of a model that quasitile wrote."""
    entry = getattr(config, "quantization_config", None)
    return (entry.get("quant_method") if isinstance(entry, dict) else getattr(entry, "quant_method", None)) == METHOD


def load_trainable(model: str | Path, device: torch.device = CPU, *, decoded: bool = True) -> tuple[Any, Any]:
    """Like `load_model`, with what rounding took away where the folder has it.

    Args:
        model: A folder that quasitile wrote.
        device: Where it computes.
        decoded: Now; else each weight is when it is first used, and kept from then on.

    Raises:
        InputError: The folder's remainders do not fit its model.
    """
    loaded, tokenizer = load_model(model, device=device, execution="dense" if decoded else "lazy")
    if not decoded:
        for matrix in tiled_matrices(loaded).values():
            matrix.release()
            matrix.execution = "dense"
    remainders = read_remainders(model)
    num_states = 1
    for name, matrix in tiled_matrices(loaded).items():
        coded = matrix.coded()
        num_states = max(num_states, coded.num_states)
        matrix.remainders = remainders.get(name)
        size = sum(block.num_codes for block in coded.blocks)
        if matrix.remainders is not None and matrix.remainders.shape != (size,):
            raise InputError(f"{model}: the remainders of {name} do not fit its blocks; delete remainders.safetensors")
    if num_states > 1:
        say(f"  {model} lies on a trellis: storing undoes small changes; `compress --set trellis=1` makes a model that learns")
    return loaded, tokenizer


def save_model(model: Any, tokenizer: Any, folder: Path, *, trainable: bool = False) -> None:
    """Write a compressed model as a Hugging Face folder. All its matrices must be packed.

    Args:
        model: As `quasitile.runtime.convert` made it or `load_model` loaded it. What is no matrix is
            stored as `storage_dtypes` found when it was loaded.
        tokenizer: Written beside it.
        folder: Exists.
        trainable: Also write what rounding took away, for later training.
    """
    tied = tied_heads(model)
    describe(model, tied)
    dtypes = getattr(model, "storage_dtypes", None) or storage_dtypes(uncoded(model), torch.bfloat16)
    dropped = set(getattr(model, "all_tied_weights_keys", None) or {})
    tensors = {
        name: tensor.detach().to(CPU, dtypes.get(name, tensor.dtype))
        for name, tensor in model.state_dict().items()
        if name not in dropped
    }
    write_shards(tensors, folder)
    remainders = {name: matrix.remainders for name, matrix in tiled_matrices(model).items() if matrix.remainders is not None}
    if trainable and remainders:
        write_remainders(remainders, folder)
    config = model.config
    config.architectures = config.architectures or [type(model).__name__]
    loaded_dtype, config.dtype = config.dtype, dtypes[""]
    config.save_pretrained(folder)
    config.dtype = loaded_dtype
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    finish_folder(folder, trust_index=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
