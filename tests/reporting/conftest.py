"""A synthetic run of two sizes, with numbers that a real run could have."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from minitron_nas.storage.atomic import write_json, write_text
from minitron_nas.storage.schemas import (
    BENCHMARKS,
    CANDIDATES,
    CORRELATIONS,
    CURVES,
    DIFFERENCES,
    EVALUATIONS,
    EXCLUSIONS,
    RATES,
    SCORES,
    TRIALS,
)
from minitron_nas.storage.sealed import seal
from minitron_nas.storage.tables import write_rows

Row = dict[str, Any]

SIZES = {"110M": 110_000_000, "94M": 94_000_000}
VOCAB_SIZE, HEAD_DIM = 49152, 64
TEACHER = {
    "source": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "fingerprint": "sha256:5a0c4f1e9b7d",
    "num_parameters": 134_515_008,
}
TEACHER_SHAPE = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
KD_TOKENS = 20_000_000
# (untrained KL, trained KL, prefill tokens/s, decode tokens/s) of student, depth and random baseline
QUALITY = {
    "110M": ((1.914, 0.2137, 5210.0, 63.1), (3.482, 0.2985, 5390.0, 66.0), (9.873, 0.5412, 5204.0, 63.3)),
    "94M": ((3.127, 0.3342, 6080.0, 71.8), (5.266, 0.4719, 6255.0, 75.9), (10.412, 0.8037, 6077.0, 71.6)),
}
CHOSEN = {"110M": (28, 576, 1152, 9, 3), "94M": (26, 512, 1152, 9, 3)}
RUNG_KL = {1: (0.671, 0.624, 0.752, 0.817), 2: (0.402, 0.439)}
ROLES = {"student": "", "depth_only": "-depth-only", "random_weights": "-random-weights"}


def num_parameters(shape: Row) -> int:
    """Parameters of a Llama with tied embeddings."""
    hidden, neurons = shape["hidden_size"], shape["intermediate_size"]
    query, keys = shape["num_attention_heads"] * HEAD_DIM, shape["num_key_value_heads"] * HEAD_DIM
    layer = 2 * hidden * query + 2 * hidden * keys + 3 * hidden * neurons + 2 * hidden
    return VOCAB_SIZE * hidden + shape["num_hidden_layers"] * layer + hidden


def shape_id(shape: Row) -> str:
    return "-".join(f"{letter}{size}" for letter, size in zip("lhfqk", shape.values(), strict=True))


def candidates() -> list[Row]:
    """Twelve candidates a size: eight screened, of which four became trials."""
    random = Random(7)
    rows: list[Row] = []
    for label, size in SIZES.items():
        chosen = dict(zip(TEACHER_SHAPE, CHOSEN[label], strict=True))
        others = [shape for shape in _shapes_near(size) if shape != chosen]
        shapes = [chosen, *random.sample(others, 11)]
        for place, shape in enumerate(shapes):
            screened = 1.9 + 0.31 * place + 0.2 * random.random() + (1.2 if label == "94M" else 0.0)
            rows.append(
                {
                    "size": label,
                    "candidate": shape_id(shape),
                    **shape,
                    "num_parameters": num_parameters(shape),
                    "num_embedding_parameters": VOCAB_SIZE * shape["hidden_size"],
                    "forward_flops_per_token": 2 * num_parameters(shape),
                    **_cache(shape),
                    "screen_kl_nats": screened if place < 8 else None,
                    "screen_loss_nats": screened + 2.9 if place < 8 else None,
                    "on_front": place in (0, 3),
                    "outcome": _outcome(label, place),
                    "reason": _reason(label, place),
                }
            )
    return rows


def trials() -> list[Row]:
    """Four trials a size and two rungs; one trial of 94M runs out of memory."""
    rows: list[Row] = []
    for label in SIZES:
        mine = [row for row in candidates() if row["size"] == label][:4]
        for place, candidate in enumerate(mine):
            failed = candidate["outcome"] == "failed"
            rungs = (1, 2) if place < 2 else (1,)
            for rung in rungs:
                kl = RUNG_KL[rung][place] * (1.5 if label == "94M" else 1)
                rows.append(
                    {
                        "size": label,
                        "candidate": candidate["candidate"],
                        "rung": rung,
                        "tokens": 1_000_000 * 4 ** (rung - 1),
                        "kl_nats": None if failed else kl,
                        "loss_nats": None if failed else 2.9 + kl,
                        "promoted": not failed and (place < 2 if rung == 1 else place == 0),
                        "status": "infeasible" if failed else "completed",
                        "error": "OutOfMemoryError: tried to allocate 1.50 GiB" if failed else None,
                        "num_parameters": candidate["num_parameters"],
                        "seconds": 212.0 * rung,
                        "began_seconds": 1.8e9 + 3600 * list(SIZES).index(label) + 424 * rung + 60 * place,
                    }
                )
    return rows


def curves() -> list[Row]:
    """Validation every two million tokens, training every half million, for six models."""
    random = Random(11)
    rows: list[Row] = []
    for label, per_role in QUALITY.items():
        for (role, suffix), (untrained, trained, _, _) in zip(ROLES.items(), per_role, strict=True):
            for tokens in range(0, KD_TOKENS + 1, 500_000):
                fall = math.exp(-tokens / 2_500_000)
                settled = trained * (1 + 1.5 * (1 - tokens / KD_TOKENS))
                kl = settled + (untrained - settled) * fall
                known = {"model": label + suffix, "size": label, "role": role, "tokens": tokens}
                if tokens:
                    noisy = kl * (1.03 + 0.16 * (random.random() - 0.5))
                    rows.append({**known, "split": "train", "kl_nats": noisy, "learning_rate": 3e-4 * fall})
                if tokens % 2_000_000 == 0:
                    rows.append({**known, "split": "validation", "kl_nats": kl, "loss_nats": kl + 2.9})
    return rows


def evaluations() -> list[Row]:
    """The teacher, two students and their four baselines."""
    teacher = {
        "model": "teacher",
        "size": None,
        "role": "teacher",
        "path": TEACHER["source"],
        **TEACHER_SHAPE,
        **_costs(TEACHER_SHAPE),
        "tokens_trained": None,
        "exported_tokens": None,
        "untrained_kl_nats": None,
        **_quality(0.0),
        "prefill_tokens_per_second": 4312.0,
        "decode_tokens_per_second": 52.4,
        "prefill_speedup": 1.0,
        "decode_speedup": 1.0,
        "prefill_spread": 0.03,
        "decode_spread": 0.05,
        "peak_memory_bytes": 812_000_000,
        "proof_max_abs_difference": None,
    }
    return [teacher, *(_evaluation(label, place) for label in SIZES for place in range(3))]


def lineage(label: str) -> Row:
    shape = dict(zip(TEACHER_SHAPE, CHOSEN[label], strict=True))
    source = TEACHER_SHAPE if label == "110M" else dict(zip(TEACHER_SHAPE, CHOSEN["110M"], strict=True))
    fixed = {
        "model_type": "llama",
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB_SIZE,
        "tie_word_embeddings": True,
    }
    dropped = range(20, 20 + source["num_hidden_layers"] - shape["num_hidden_layers"])
    return {
        "size": label,
        "role": "student",
        "teacher": {"source": TEACHER["source"], "fingerprint": TEACHER["fingerprint"]},
        "source": {"name": "teacher" if label == "110M" else "110M", "fingerprint": "sha256:77b1f0c2d3aa"},
        "architecture": {**fixed, **shape},
        "source_architecture": {**fixed, **source},
        "kept_layers": [layer for layer in range(source["num_hidden_layers"]) if layer not in dropped],
        "start": {"channels": "channels are rotated", "repair": "ridge"},
        "tokens_trained": KD_TOKENS,
        "exported_tokens": KD_TOKENS,
        "learning_rate": 3e-4,
        "seed": 7,
        "dtype": "bfloat16",
        "versions": {"minitron-nas": "0.1.0", "torch": "2.13.0", "transformers": "5.20.1"},
        "proof": {"max_abs_difference": 2.1e-6, "tolerance": 1e-4},
    }


def write_plan(folder: Path) -> None:
    plan = {
        "teacher": TEACHER["source"],
        "sizes": list(SIZES),
        "data": "HuggingFaceFW/fineweb-edu",
        "space": {
            "tolerance": 0.05,
            "window": None,
            "axes": {"num_hidden_layers": {"min_fraction": 0.6, "step_fraction": 0.0667}},
        },
        "distillation": {"tokens": KD_TOKENS, "learning_rate": 3e-4, "sequence_length": 1024},
        "seed": 7,
    }
    versions = {"minitron-nas": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "transformers": "5.20.1"}
    write_text(
        folder / "plan.yaml",
        yaml.safe_dump({"plan": plan, "versions": versions, "teacher": TEACHER}, sort_keys=False),
    )


def write_run(folder: Path) -> Path:
    """Write a whole run folder."""
    write_plan(folder)
    write_rows(folder, CANDIDATES, candidates())
    write_rows(folder, EXCLUSIONS, _exclusions())
    write_rows(folder, TRIALS, trials())
    write_rows(folder, RATES, _rates())
    write_rows(folder, CORRELATIONS, _correlations())
    write_rows(folder, CURVES, curves())
    write_rows(folder, EVALUATIONS, evaluations())
    write_rows(folder, BENCHMARKS, _benchmarks())
    write_rows(folder, DIFFERENCES, _differences())
    write_rows(folder / "importance" / "teacher", SCORES, _scores())
    for label in SIZES:
        write_json(folder / "students" / label / "lineage.json", lineage(label))
    write_text(folder / "ledger.jsonl", "".join(f"{seal(entry)}\n" for entry in _entries()))
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder to read, not to write to."""
    return write_run(tmp_path_factory.mktemp("runs") / "smollm2")


@pytest.fixture
def new_run(tmp_path: Path) -> Path:
    """A run folder that holds a plan and nothing else."""
    write_plan(tmp_path / "begun")
    return tmp_path / "begun"


def _shapes_near(size: int) -> Iterator[Row]:
    for layers in (30, 28, 26, 24, 22):
        for hidden in (576, 512, 448):
            for neurons in (1536, 1408, 1280, 1152, 1024):
                for groups in (3, 2):
                    names = (layers, hidden, neurons, 3 * groups, groups)
                    shape = dict(zip(TEACHER_SHAPE, names, strict=True))
                    if abs(num_parameters(shape) / size - 1) <= 0.05:
                        yield shape


def _outcome(label: str, place: int) -> str:
    if place == 0:
        return "chosen"
    if place == 3 and label == "94M":
        return "failed"
    return "stopped" if place < 4 else "screened_out" if place < 8 else "not_sampled"


def _reason(label: str, place: int) -> str | None:
    reasons = {
        "chosen": "lowest KL after the last rung",
        "failed": "out of memory in rung 1: the shape does not fit this device",
        "stopped": f"stopped after rung {2 if place == 1 else 1}: its KL was above the half that went on",
        "screened_out": "its untrained KL was not among the 4 lowest",
        "not_sampled": "the sampler had its 8 candidates before this one",
    }
    return reasons[_outcome(label, place)]


def _rates() -> list[Row]:
    """Three rates at 110M, of which the highest diverged."""
    tried = ((3e-4, 0.271, None), (1e-4, 0.302, None), (1e-3, None, "its KL is nan"))
    return [
        {
            "size": "110M",
            "candidate": candidates()[0]["candidate"],
            "learning_rate": rate,
            "tokens": KD_TOKENS // 40,
            "start_kl_nats": 0.388,
            "kl_nats": kl,
            "loss_nats": None if kl is None else kl + 2.9,
            "chosen": rate == 3e-4,
            "status": "completed" if error is None else "diverged",
            "error": error,
            "seconds": 61.0,
        }
        for rate, kl, error in tried
    ]


def _scores() -> list[Row]:
    """Of the teacher; of its channels and neurons the first ones."""
    parts = {"heads": 9, "kv_groups": 3, "neurons": 48}
    alike = [("hidden", None, index) for index in range(48)] + [("layers", None, index) for index in range(30)]
    named = [(axis, layer, index) for axis, number in parts.items() for layer in range(30) for index in range(number)]
    return [
        {"axis": axis, "layer": layer, "index": index, "score": 1 / (1 + index + (layer or 0)), "rank": index}
        for axis, layer, index in [*alike, *named]
    ]


def _entries() -> Iterator[Row]:
    """One stage after the other."""
    stages = ["text", "teacher signal", "teacher evaluate", "teacher score", "teacher prepare"]
    stages += [f"{label} {kind}" for label in SIZES for kind in ("screen", "tournament", "distil", "evaluate")]
    end = datetime(2026, 1, 1, tzinfo=UTC)
    for place, stage in enumerate([*stages, "study"]):
        seconds = 60.0 + 15 * place
        end += timedelta(seconds=seconds)
        entry = {"stage": stage, "fingerprint": f"{place:016}", "result": None, "seconds": seconds}
        yield {**entry, "outputs": [], "rows": [], "finished": end.isoformat(timespec="seconds")}


def _correlations() -> list[Row]:
    """Of four trials at 110M, two exchanged their places after rung 1; at 94M one was lost, and two went on."""
    looks = {"earlier": "screen", "later": "rung 1", "num_candidates": 4, "spearman": 0.8, "kendall": 2 / 3}
    unknown = {"earlier": "rung 1", "later": "rung 2", "num_candidates": 2, "spearman": None, "kendall": None}
    return [{"size": "110M", **looks}, {"size": "110M", **unknown}, {"size": "94M", **unknown}]


def _exclusions() -> list[Row]:
    told = (
        ("size_window", "total parameters must lie within the size's tolerance or window", 129),
        (
            "hidden_multiple_of_heads",
            "transformers refuses a hidden_size that is no multiple of the heads",
            34,
        ),
        ("heads_fill_groups", "every KV group needs the same number of query heads", 12),
    )
    return [
        {"size": label, "rule": rule, "reason": reason, "num_shapes": count + (9 if label == "94M" else 0)}
        for label in SIZES
        for rule, reason, count in told
    ]


def _cache(shape: Row) -> Row:
    kept = 4 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * HEAD_DIM
    return {"kv_cache_bytes_per_token": kept, "state_bytes_per_sequence": 0}


def _costs(shape: Row) -> Row:
    return {
        **_cache(shape),
        "num_parameters": num_parameters(shape),
        "num_embedding_parameters": VOCAB_SIZE * shape["hidden_size"],
    }


def _quality(kl: float) -> Row:
    loss = 2.9017 + 0.83 * kl
    return {"kl_nats": kl, "loss_nats": loss, "perplexity": math.exp(loss)}


def _evaluation(label: str, place: int) -> Row:
    role, suffix = list(ROLES.items())[place]
    untrained, trained, prefill, decode = QUALITY[label][place]
    shape = dict(zip(TEACHER_SHAPE, CHOSEN[label], strict=True))
    if role == "depth_only":
        shape = {**TEACHER_SHAPE, "num_hidden_layers": {"110M": 23, "94M": 18}[label]}
    return {
        "model": label + suffix,
        "size": label,
        "role": role,
        "path": f"students/{label}" if role == "student" else None,
        **shape,
        **_costs(shape),
        "tokens_trained": KD_TOKENS,
        "exported_tokens": KD_TOKENS,
        "untrained_kl_nats": untrained,
        **_quality(trained),
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
        "prefill_speedup": prefill / 4312.0,
        "decode_speedup": decode / 52.4,
        "prefill_spread": 0.02,
        "decode_spread": 0.04,
        "peak_memory_bytes": num_parameters(shape) * 6,
        "proof_max_abs_difference": 2.1e-6 if role == "student" else None,
    }


def _benchmarks() -> list[Row]:
    tasks = (
        ("arc_easy", "acc_norm,none", 0.553),
        ("piqa", "acc,none", 0.674),
        ("winogrande", "acc,none", 0.531),
    )
    return [
        {
            "model": row["model"],
            "task": task,
            "task_version": "1.0",
            "metric": metric,
            "value": value - 0.11 * row["kl_nats"],
            "standard_error": 0.0138,
            "num_fewshot": 0,
            "limit": None if task == "piqa" else 1000,
            "num_documents": {"arc_easy": 1000, "piqa": 1838}.get(task),
            "higher_is_better": True,
        }
        for task, metric, value in tasks
        for row in evaluations()
    ]


def _differences() -> list[Row]:
    """Of one task; the first student is no different from the teacher, and better than its baselines."""
    rows = {row["model"]: row for row in _benchmarks() if row["task"] == "piqa"}
    found = []
    for row in evaluations():
        others = ["teacher"] if row["role"] != "teacher" else []
        if row["role"] == "student":
            others += [row["size"] + end for role, end in ROLES.items() if role != "student"]
        for other in others:
            difference = rows[row["model"]]["value"] - rows[other]["value"]
            found.append(
                {
                    "size": row["size"],
                    "model": row["model"],
                    "other": other,
                    "task": "piqa",
                    "metric": "acc,none",
                    "num_documents": 1838,
                    "difference": difference,
                    "standard_error": 0.0121 if other == "teacher" else 0.0041,
                    "differs": abs(difference) > 1.96 * (0.0121 if other == "teacher" else 0.0041),
                }
            )
    return found
