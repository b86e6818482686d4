"""Which key of a config holds which size, and the sizes that probes are made with."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig

from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import CheckpointError

_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "hidden_size": ("n_embd", "d_model", "n_embed"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "feedforward_size"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads", "num_query_groups"),
    "head_dim": ("kv_channels", "d_head", "d_kv"),
    "vocab_size": (),
    "max_position_embeddings": ("n_positions", "max_sequence_length", "n_ctx"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("moe_topk", "moe_k", "num_experts_per_token"),
    "moe_intermediate_size": (),
}
_FOLLOWERS = ("dim", "width", "size")
"""Parts of keys that may hold a size which has to equal hidden_size."""
_NO_FOLLOWERS = ("window", "position", "vocab", "chunk", "block", "rope", "head")
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_OF_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


class Fields:
    """Where a config has the fields of `Architecture`."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Find the keys, by the names that transformers maps and by those that are common.

        Args:
            content: A config with all that transformers fills in.
        """
        mapped = getattr(type(AutoConfig.for_model(str(content["model_type"]))), "attribute_map", {})
        self._keys: dict[str, tuple[str, ...]] = {}
        for field, others in _OTHER_NAMES.items():
            names = (field, mapped.get(field, field), *others)
            self._keys[field] = tuple(dict.fromkeys(name for name in names if name in content))[:1]
        hidden = self._value(content, "hidden_size")
        own = {key for keys in self._keys.values() for key in keys}
        self._keys["hidden_size"] += tuple(
            key
            for key, value in content.items()
            if key not in own
            and value == hidden
            and any(part in key for part in _FOLLOWERS)
            and not any(part in key for part in _NO_FOLLOWERS)
        )

    def keys(self, field: str) -> tuple[str, ...]:
        """Return the keys that hold a field, all of which have to be set; none where there is no such key."""
        return self._keys.get(field, ())

    def all_keys(self) -> set[str]:
        """Return every key that holds a field."""
        return {key for keys in self._keys.values() for key in keys}

    def with_sizes(self, content: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """Return a config with other sizes; `head_dim` is written even where no key is known for it.

        Args:
            content: A config.
            sizes: By field; a field without a key is left out.
        """
        changes = {key: value for field, value in sizes.items() for key in self.keys(field)}
        if "head_dim" in sizes and not self.keys("head_dim"):
            changes["head_dim"] = sizes["head_dim"]
        return {**content, **changes}

    def architecture(self, content: Mapping[str, Any], ffn_ratio: int = 0) -> Architecture:
        """Return the shape that a config describes.

        Args:
            content: A config of a probe.
            ffn_ratio: Hidden sizes of an FFN that the config leaves out.

        Raises:
            CheckpointError: If the config has no key for a size without which there is no shape.
        """
        read = {field: self._value(content, field) for field in _OTHER_NAMES}
        if missing := [field for field in _NEEDED if read[field] is None]:
            raise CheckpointError(
                f"a config of type {content['model_type']!r} has no key for {', '.join(missing)}, so that no table can "
                "be drafted from it; write one by hand, as the families' page shows for layers of several kinds"
            )
        heads, hidden = read["num_attention_heads"] or 1, read["hidden_size"] or 1
        read["num_key_value_heads"] = read["num_key_value_heads"] or heads
        read["head_dim"] = read["head_dim"] or content.get("head_dim") or hidden // heads
        read["intermediate_size"] = read["intermediate_size"] or (ffn_ratio or 1) * hidden
        for field in _OF_EXPERTS:
            read[field] = read[field] or 0
        sizes: dict[str, Any] = {field: value for field, value in read.items() if value is not None}
        return Architecture(str(content["model_type"]), **sizes)

    def value(self, content: Mapping[str, Any], field: str) -> int | None:
        """Return what a config says of a field."""
        return self._value(content, field)

    def _value(self, content: Mapping[str, Any], field: str) -> int | None:
        return next((content[key] for key in self.keys(field) if isinstance(content.get(key), int)), None)


def variants(base: Architecture, fields: Fields) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield sizes to probe, by name: between any two axes there is a probe in which only one of them differs.

    In all but `head_dim` and `hidden_size` the heads fill the hidden size, for families that know nothing else.

    Args:
        base: The shape that they are changes of.
        fields: Says what the config has a key for.
    """
    heads, groups, width = base.num_attention_heads, base.num_key_value_heads, base.head_dim
    yield "head_dim", {"head_dim": 2 * width}
    yield "hidden_size", {"hidden_size": base.hidden_size + heads * width}
    yield "channels", {"head_dim": 2 * width, "hidden_size": 2 * base.hidden_size}
    yield "neurons", {"intermediate_size": base.intermediate_size + 24}
    yield "vocab_size", {"vocab_size": base.vocab_size + 8}
    yield "positions", {"max_position_embeddings": base.max_position_embeddings + 8}
    more = {"num_attention_heads": 2 * heads, "hidden_size": 2 * base.hidden_size}
    if fields.keys("num_key_value_heads") and groups < heads:
        yield "heads", {**more, "num_key_value_heads": groups}
        yield "groups", {"num_key_value_heads": groups + 1} if heads % (groups + 1) == 0 else {}
    else:
        yield "heads", {**more, "num_key_value_heads": 2 * groups}
    if base.num_experts:
        yield "experts", {"num_experts": base.num_experts + 2}
        yield "expert_neurons", {"moe_intermediate_size": base.moe_intermediate_size + 8}
