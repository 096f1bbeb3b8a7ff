"""Is a checkpoint whole? Every tensor that the model is made of, by name, type and shape, and none besides.

Asked when a base is pinned, of the headers and the tokenizer alone: what loading would stop at hours later is said in
seconds.
"""

from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.models.checkpoint import Checkpoint, read_config
from pipeline.models.families.registry import anatomy_of, language_model
from pipeline.models.tokenizer import load_tokenizer, written_tokens

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def check_complete(folder: Path) -> None:
    """Raise UserError, naming the first tensor, unless loading the checkpoint would find what it needs and no more."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config, _ = language_model(read_config(folder))
    anatomy = anatomy_of(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        for layer in anatomy.moe_layers:
            model.get_submodule(anatomy.block_path(layer)).experts = torch.nn.Identity()
    with Checkpoint(folder) as checkpoint:
        source = _HeadersAlone(checkpoint)
        for name, parameter in model.named_parameters():
            if not (name == HEAD and config.tie_word_embeddings):
                source.tensor(anatomy.checkpoint_name(name), tuple(parameter.shape))
        for layer in anatomy.moe_layers:
            prefix = anatomy.checkpoint_name(anatomy.experts_path(layer))
            # Where all experts of a layer are one tensor, the last one's place in it shows whether all are there.
            one, _ = anatomy.family.slot(anatomy.checkpoint_name(anatomy.projection_path(layer, 0, "down")))
            for expert in range(0 if ".0." in one.removeprefix(prefix) else anatomy.experts - 1, anatomy.experts):
                anatomy.family.read_expert(source, anatomy, prefix, expert)
        refuse_unread(checkpoint, config)
    check_vocabulary(folder, config.vocab_size)


def check_vocabulary(folder: Path, known: int) -> None:
    """Raise UserError if a batch can have tokens, such as an added one for padding, beyond those the model knows.

    On a GPU such a token is a failed assertion of CUDA's, hours later, that names nothing. Tokens that were added and
    that nothing here writes may be unknown: Gemma 3 lists one for images, and its language model of 1B has none.
    """
    tokenizer = load_tokenizer(folder)
    of_text = set(tokenizer.get_vocab().values()) - set(tokenizer.get_added_vocab().values())
    last = max(of_text | written_tokens(tokenizer))
    if last >= known:
        raise UserError(
            f"{folder}: the tokenizer's {tokenizer.convert_ids_to_tokens(last)!r} is token {last}, but the model knows "
            f"{known}, of which the last is {known - 1}: save it with the tokenizer that it was trained with, or with "
            "larger embeddings."
        )


def refuse_unread(checkpoint: Checkpoint, config: Any) -> None:
    """Raise UserError if the checkpoint holds tensors that nothing asked for, and that are no known leftovers."""
    left = [name for name in checkpoint.unread() if not name.endswith("rotary_emb.inv_freq")]
    if config.tie_word_embeddings and HEAD in left:  # a copy that is not used, if it is one
        left.remove(HEAD)
        if not bool((checkpoint.tensor(HEAD) == checkpoint.tensor(EMBEDDINGS)).all()):
            raise UserError(
                f"{checkpoint.folder}: config.json says that {HEAD} is tied to the embeddings, and the checkpoint "
                "holds another one, which would be ignored; set tie_word_embeddings to false if it is meant."
            )
    if left:
        raise UserError(
            f"{checkpoint.folder} holds tensors that {config.model_type} has no place for, such as {left[0]}."
        )


class _HeadersAlone:
    """A checkpoint as a `Source` whose tensors have a type and a shape, and no values."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint

    def has(self, name: str) -> bool:
        return self._checkpoint.has(name)

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Any:
        self._checkpoint.look_at(name, shape)
        return _nothing(name, self._checkpoint.header(name).shape)

    def part(self, name: str, index: int, shape: tuple[int, ...]) -> Any:
        self._checkpoint.look_at_part(name, index, shape)
        return _nothing(name, shape)

    def skip(self, prefix: str) -> None:
        self._checkpoint.skip(prefix)

    def unread(self) -> Any:
        return self._checkpoint.unread()


def _nothing(name: str, shape: tuple[int, ...]) -> Any:
    """Zeros without storage of their own: one value, seen everywhere."""
    import torch

    packed = name.endswith(("_blocks", "_scales"))
    return torch.zeros((), dtype=torch.uint8 if packed else torch.bfloat16).expand(shape)
