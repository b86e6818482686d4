"""Which signal the teacher gives over which part of the text: writing its caches once, opening them anywhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.folder import WHOLE, Share, SignalFolder, SignalPlace, read_about
from minitron_nas.distillation.signals.hidden_cache import HiddenCache, write_hidden_cache
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.distillation.signals.top_k_cache import TopKCache, write_top_k_cache
from minitron_nas.execution.device import release_memory
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_inference
from minitron_nas.progress import Progress, silent
from minitron_nas.text.tokens import PackedTokens


def cached_parts(settings: DistillationSettings) -> dict[str, int | None]:
    """Return the parts of the text over which the teacher speaks beforehand, with the K that is kept of it.

    None stands for hidden states, which validation always has: it takes the KL over the whole vocabulary.

    Args:
        settings: Which signal training has, and which loss.
    """
    parts: dict[str, int | None] = {"validation": None}
    if settings.caches_training:
        parts["train"] = settings.cached_top_k
    return parts


def keep_signal(
    top_k: int | None,
    load: Callable[[], CausalLM],
    place: SignalPlace,
    progress: Progress = silent,
    share: Share = WHOLE,
) -> None:
    """Write a cache of what the teacher says, unless it is there; a killed call that is repeated goes on.

    Args:
        top_k: How many tokens are kept of each distribution; None keeps hidden states.
        load: Loads the teacher; not called where the cache is whole.
        place: Where, and over what; with the fingerprint of the teacher.
        progress: Told about tokens.
        share: Which of its shards, where several processes write at once.

    Raises:
        DiskSpaceError: If the disk cannot hold the cache.
        CacheError: If a shard reads back otherwise than it was written.
    """
    if _is_kept(top_k, place):
        progress(place.tokens.num_tokens, place.tokens.num_tokens)
    elif top_k is not None:
        write_top_k_cache(load(), place, top_k, share=share, progress=progress)
    else:
        write_hidden_cache(load(), place, share=share, progress=progress)


@contextmanager
def loaded_once(teacher: Path) -> Iterator[Callable[[], CausalLM]]:
    """Give what loads a teacher when it is first asked for, and lets go of it at the end.

    Args:
        teacher: A stock folder.
    """
    load = cache(partial(load_for_inference, teacher))
    yield load
    load.cache_clear()
    release_memory()


def keep_signals(
    load: Callable[[], CausalLM],
    fingerprint: str,
    parts: Mapping[str, int | None],
    texts: Mapping[str, PackedTokens],
    paths: Mapping[str, Path],
    progress: Progress = silent,
    share: Share = WHOLE,
) -> None:
    """Write the caches of a teacher over several parts of the text.

    Args:
        load: Returns the teacher, the same each time; not called where all caches are whole.
        fingerprint: Of the teacher.
        parts: What is kept of each part, as `cached_parts` says.
        texts: The streams.
        paths: The folders of the caches.
        progress: Told about tokens of all parts.
        share: Which of their shards, where several processes write at once.

    Raises:
        DiskSpaceError: If the disk cannot hold a cache.
        CacheError: If a shard reads back otherwise than it was written.
    """
    total, done = sum(texts[part].num_tokens for part in parts), 0
    for part, top_k in parts.items():
        tokens = texts[part]
        keep_signal(
            top_k,
            load,
            SignalPlace(paths[part], fingerprint, tokens),
            partial(_tell_part, progress, done, tokens.num_tokens, total),
            share,
        )
        done += tokens.num_tokens


def _tell_part(progress: Progress, before: int, num_tokens: int, total: int, done: int, share: int) -> None:
    """Tell of one part among others, `done` of the `share` of its tokens that are written here."""
    progress(before + num_tokens * done // share, total)


def open_signal(teacher: Path, fingerprint: str, tokens: PackedTokens, path: Path | None) -> TeacherSignal:
    """Open the cache, or load the teacher itself where there is none.

    Args:
        teacher: A stock folder; it is not read where there is a cache.
        fingerprint: Of the teacher.
        tokens: The stream.
        path: What `keep_signal` wrote, or None.

    Raises:
        CacheError: If the cache is not whole, or of something else.
    """
    if path is None:
        return OnlineTeacher(load_for_inference(teacher))
    is_top_k = (read_about(path) or {}).get("kind") == TopKCache.kind
    place = SignalPlace(path, fingerprint, tokens)
    return TopKCache(place) if is_top_k else HiddenCache(place)


def _is_kept(top_k: int | None, place: SignalPlace) -> bool:
    about = read_about(place.path)
    if about is None or not SignalFolder(place.path, about).is_whole:
        return False
    wanted: dict[str, Any] = place.about(HiddenCache.kind)
    if top_k is not None:
        wanted = {**place.about(TopKCache.kind), "k": min(top_k, about.get("vocab_size", top_k))}
    return all(about.get(key) == value for key, value in wanted.items())
