"""The schema of every Parquet table of a run: column by column, with units, in one place.

`SCHEMA_VERSION` stands in each file's metadata. It rises when a column changes its meaning or goes
away; a new column alone does not raise it.
"""

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its Arrow type and what it says, with its unit."""

    name: str
    type: pa.DataType
    description: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its file name, the columns that identify a row, and all columns."""

    file_name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    def arrow_schema(self) -> pa.Schema:
        """Return the Arrow schema, with descriptions as field metadata."""
        fields = [pa.field(c.name, c.type, metadata={"description": c.description}) for c in self.columns]
        return pa.schema(fields, metadata={"minitron_nas_schema_version": str(SCHEMA_VERSION)})


_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()

_SHAPE = (
    Column("num_hidden_layers", _INT, "decoder layers"),
    Column("hidden_size", _INT, "channels of the residual stream"),
    Column("intermediate_size", _INT, "FFN neurons a layer"),
    Column("num_attention_heads", _INT, "query heads a layer"),
    Column("num_key_value_heads", _INT, "key-value groups a layer"),
    Column("num_experts", _INT, "experts a layer; null where the family has none"),
    Column("moe_intermediate_size", _INT, "FFN neurons an expert; null where intermediate_size says it"),
    Column("shared_expert_intermediate_size", _INT, "neurons that see every token; null where experts have them alone"),
    Column("mamba_num_heads", _INT, "heads of a layer's Mamba mixer; null where the family has none"),
    Column("mamba_head_dim", _INT, "channels of each of those heads; null where the family has none"),
)

_CACHE = (
    Column("kv_cache_bytes_per_token", _INT, "bytes of 16-bit keys and values per token of context"),
    Column("state_bytes_per_sequence", _INT, "bytes of 16-bit states per sequence; 0 where no layer hands one on"),
)

SCORES = Table(
    "scores.parquet",
    ("axis", "layer", "expert", "index"),
    (
        Column(
            "axis",
            _TEXT,
            "hidden, neurons, expert_neurons, shared_neurons, conv_channels, wide_neurons, mamba_heads, "
            "mamba_channels, heads, kv_groups, experts, layers",
        ),
        Column("layer", _INT, "decoder layer from 0; null for hidden, whose ranking all layers share, and for layers"),
        Column("expert", _INT, "expert from 0 whose neuron it is; null otherwise"),
        Column("index", _INT, "channel, neuron, query head, KV group, expert or layer, from 0"),
        Column("score", _FLOAT, "importance; comparable within one axis, layer and expert only"),
        Column("rank", _INT, "0 is the most important of those that it is comparable with"),
    ),
)

CANDIDATES = Table(
    "candidates.parquet",
    ("size", "candidate"),
    (
        Column("size", _TEXT, "label of the size, e.g. 110M or memory-6GB"),
        Column("candidate", _TEXT, "shape id"),
        *_SHAPE,
        Column("num_parameters", _INT, "total parameters, tied embeddings counted once"),
        Column("num_active_parameters", _INT, "parameters that take part in a token: of experts, those it is sent to"),
        Column("num_embedding_parameters", _INT, "parameters of token embedding and untied output head"),
        Column("forward_flops_per_token", _INT, "FLOPs of a forward pass per token at the plan's sequence length"),
        *_CACHE,
        Column(
            "memory_bytes",
            _INT,
            "16-bit weights, keys, values and states at search.batch_size and search.context_tokens",
        ),
        Column("prefill_seconds", _FLOAT, "predicted time of a prompt; null where no latency model predicts it"),
        Column("decode_seconds", _FLOAT, "predicted time of a new token; null where no latency model predicts it"),
        Column("predicted_kl_nats", _FLOAT, "untrained KL that the surrogate expects; null without one"),
        Column(
            "round",
            _INT,
            "round of the screening in which it was measured, from 1; 0 if an earlier run had; null if not screened",
        ),
        Column("screen_kl_nats", _FLOAT, "untrained KL(teacher || candidate) per token; null if not screened"),
        Column("screen_loss_nats", _FLOAT, "untrained next-token loss; null if not screened"),
        Column(
            "on_front",
            _BOOL,
            "on the front of what was screened, in KL and the other objectives (or memory)",
        ),
        Column("reference", _TEXT, "random or largest where it is screened to hold the choice against; null otherwise"),
        Column("outcome", _TEXT, "chosen, stopped, failed, screened_out or not_sampled"),
        Column("reason", _TEXT, "why the candidate went no further, in words"),
    ),
)

EXCLUSIONS = Table(
    "exclusions.parquet",
    ("size", "rule"),
    (
        Column("size", _TEXT, "label of the size"),
        Column("rule", _TEXT, "the first rule that left the shapes out"),
        Column("reason", _TEXT, "what the rule protects"),
        Column("num_shapes", _INT, "raw combinations of the space that the rule left out"),
    ),
)

TRIALS = Table(
    "trials.parquet",
    ("size", "candidate", "rung"),
    (
        Column("size", _TEXT, "label of the size"),
        Column("candidate", _TEXT, "shape id"),
        Column("rung", _INT, "rung of the tournament, from 1; 0 is before any training"),
        Column("tokens", _INT, "KD tokens seen by the end of the rung"),
        Column("kl_nats", _FLOAT, "validation KL(teacher || student) per token"),
        Column("loss_nats", _FLOAT, "validation next-token loss"),
        Column("start_kl_nats", _FLOAT, "validation KL before training, repaired as its student would be"),
        Column("repair", _TEXT, "the better repair of its start: one_pass or in_sequence; none where nothing is"),
        Column(
            "p_worse",
            _FLOAT,
            "p-value of a paired one-sided t-test over validation sequences, that it is worse than the best of its "
            "rung; null for the best",
        ),
        Column(
            "agreement_tokens",
            _FLOAT,
            "tokens of a greedy continuation of held-out text that are the teacher's own before the first that is not, "
            "mean over up to 16 prompts, of 32; null where several processes trained the trial",
        ),
        Column("promoted", _BOOL, "whether the trial went on to the next rung, or won"),
        Column("status", _TEXT, "completed, infeasible (out of memory), timeout (given up) or failed"),
        Column("error", _TEXT, "last line of the error; null if completed"),
        Column("num_parameters", _INT, "total parameters of the candidate"),
        Column("seconds", _FLOAT, "wall time of this rung, training and validation"),
        Column(
            "began_seconds", _FLOAT, "when this rung began, in seconds since 1970 (UTC); null where it is not known"
        ),
    ),
)

RATES = Table(
    "rates.parquet",
    ("size", "candidate", "learning_rate"),
    (
        Column("size", _TEXT, "label of the parameter budget"),
        Column("candidate", _TEXT, "shape id of the size's first finalist, on which rates are tried"),
        Column("learning_rate", _FLOAT, "peak learning rate of a short training"),
        Column("tokens", _INT, "its KD tokens"),
        Column("start_kl_nats", _FLOAT, "validation KL before training"),
        Column("kl_nats", _FLOAT, "validation KL(teacher || student) per token at its end; null if not completed"),
        Column("loss_nats", _FLOAT, "validation next-token loss at its end; null if not completed"),
        Column("chosen", _BOOL, "whether trials and students of the size are trained at this rate"),
        Column(
            "status",
            _TEXT,
            "completed, diverged (no finite loss or KL), infeasible (out of memory), timeout (given up) or failed",
        ),
        Column("error", _TEXT, "last line of the error; null if completed"),
        Column("seconds", _FLOAT, "wall time, training and validation"),
    ),
)

CORRELATIONS = Table(
    "correlations.parquet",
    ("size", "earlier", "later"),
    (
        Column("size", _TEXT, "label of the size"),
        Column(
            "earlier",
            _TEXT,
            "the cheaper look: screen, start (repaired, untrained) or rung N, by validation KL; or screen on TEXT",
        ),
        Column("later", _TEXT, "the dearer look that it is held against"),
        Column("num_candidates", _INT, "candidates that have both; an earlier look chose them"),
        Column("spearman", _FLOAT, "Spearman's rank correlation; null for fewer than three candidates"),
        Column("kendall", _FLOAT, "Kendall's tau-b; null for fewer than three candidates"),
    ),
)

TEXTS = Table(
    "texts.parquet",
    ("size", "model", "look", "text"),
    (
        Column("size", _TEXT, "label of the size; null for the teacher"),
        Column("model", _TEXT, "shape id of a candidate, or name of a model as in evaluations.parquet"),
        Column("look", _TEXT, "screen, rung N, or member: the model as it was exported"),
        Column("text", _TEXT, "data, the plan's own held-out text, or a name of evaluation.texts"),
        Column("kl_nats", _FLOAT, "KL(teacher || model) per token of this text"),
        Column("loss_nats", _FLOAT, "next-token loss on this text; null for candidates"),
    ),
)

CURVES = Table(
    "curves.parquet",
    ("model", "split", "tokens"),
    (
        Column("model", _TEXT, "name of the model, as in evaluations.parquet"),
        Column("size", _TEXT, "label of the size"),
        Column("role", _TEXT, "student, depth_only, random_shape, largest_shape or random_weights"),
        Column("split", _TEXT, "train or validation"),
        Column("tokens", _INT, "KD tokens seen"),
        Column(
            "kl_nats",
            _FLOAT,
            "KL(teacher || student) per token; for train the mean since the last point, null where something else is "
            "minimised",
        ),
        Column("loss_nats", _FLOAT, "next-token loss; null for train"),
        Column("objective", _FLOAT, "for train the mean of what is minimised since the last point"),
        Column("learning_rate", _FLOAT, "learning rate at this point; null for validation"),
    ),
)

EVALUATIONS = Table(
    "evaluations.parquet",
    ("model",),
    (
        Column(
            "model", _TEXT, "teacher, the size's label, that with -2 for a second student, a baseline's with its role"
        ),
        Column("size", _TEXT, "label of the size; null for the teacher"),
        Column("role", _TEXT, "teacher, student, depth_only, random_shape, largest_shape or random_weights"),
        Column("path", _TEXT, "folder of the model, relative to the run folder where it lies inside"),
        *_SHAPE,
        Column("num_parameters", _INT, "total parameters, tied embeddings counted once"),
        Column("num_embedding_parameters", _INT, "parameters of token embedding and untied output head"),
        *_CACHE,
        Column("tokens_trained", _INT, "KD tokens of this model's own distillation"),
        Column("exported_tokens", _INT, "of these, after how many its weights were reached: the best validation"),
        Column("untrained_kl_nats", _FLOAT, "validation KL before distillation; null for the teacher"),
        Column("kl_nats", _FLOAT, "validation KL(teacher || model) per token"),
        Column("loss_nats", _FLOAT, "validation next-token loss"),
        Column("perplexity", _FLOAT, "exp(loss_nats)"),
        Column(
            "agreement_tokens",
            _FLOAT,
            "tokens of its greedy continuations of held-out text that are the teacher's own before the first that is "
            "not, mean over up to 16 prompts, of 32",
        ),
        Column(
            "repeated_share", _FLOAT, "share of four tokens in a row that its continuation has had before, of the same"
        ),
        Column(
            "written_tokens",
            _FLOAT,
            "tokens that it writes greedily before it ends the text, mean over the same prompts, at most 128; null if "
            "its generation_config.json names no end, or it is larger than the device",
        ),
        Column("ended_share", _FLOAT, "share of these texts that it ends by itself; null as above"),
        Column(
            "prefill_tokens_per_second",
            _FLOAT,
            "median of rounds, batch 1, bf16 or fp32; null, as all below but the proof, if larger than the device",
        ),
        Column("decode_tokens_per_second", _FLOAT, "median of rounds, with a key-value cache, batch 1"),
        Column(
            "prefill_speedup",
            _FLOAT,
            "the teacher's time over this model's, each round; median; the teacher's is 1; null if that is too large",
        ),
        Column("decode_speedup", _FLOAT, "the same of decoding"),
        Column(
            "prefill_spread",
            _FLOAT,
            "interquartile range over median of the speedups; of its own times where there are none",
        ),
        Column("decode_spread", _FLOAT, "the same of decoding"),
        Column("peak_memory_bytes", _INT, "peak of the measuring process (CPU: resident set; CUDA: allocated)"),
        Column("proof_max_abs_difference", _FLOAT, "largest logit difference between memory and reloaded folder"),
    ),
)

SAMPLES = Table(
    "samples.parquet",
    ("model", "prompt"),
    (
        Column("size", _TEXT, "label of the parameter budget; null for the teacher"),
        Column("model", _TEXT, "name of the model, as in evaluations.parquet"),
        Column("prompt", _INT, "number of the held-out beginning, from 1"),
        Column("prompt_text", _TEXT, "that beginning"),
        Column("text", _TEXT, "how the model goes on greedily, until it ends the text or has written 128 tokens"),
    ),
)

BENCHMARKS = Table(
    "benchmarks.parquet",
    ("model", "task", "metric"),
    (
        Column("model", _TEXT, "name of the model, as in evaluations.parquet"),
        Column("task", _TEXT, "lm-eval task"),
        Column("task_version", _TEXT, "lm-eval's version of the task"),
        Column("metric", _TEXT, "metric and filter, e.g. acc,none"),
        Column("value", _FLOAT, "the metric"),
        Column("standard_error", _FLOAT, "its standard error; null where lm-eval gives none"),
        Column("num_fewshot", _INT, "examples in the prompt"),
        Column("limit", _INT, "documents evaluated at most; null for all"),
        Column("num_documents", _INT, "documents that the metric is over"),
        Column("higher_is_better", _BOOL, "whether more of it is better; null where lm-eval does not say"),
        Column("subtasks", _TEXT, "of a group the tasks that it is over, with commas between them; null of a task"),
    ),
)

DOCUMENTS = Table(
    "documents.parquet",
    ("model", "task", "metric", "document"),
    (
        Column("model", _TEXT, "name of the model, as in evaluations.parquet"),
        Column("task", _TEXT, "lm-eval task"),
        Column("metric", _TEXT, "metric and filter, as in benchmarks.parquet"),
        Column("document", _INT, "number of the document in its task, from 0"),
        Column("document_hash", _TEXT, "of what it says, so that only the same documents are compared"),
        Column("value", _FLOAT, "what the model got for it"),
    ),
)

ANSWERS = Table(
    "answers.parquet",
    ("model", "task", "filter", "document"),
    (
        Column("model", _TEXT, "name of the model, as in evaluations.parquet"),
        Column("task", _TEXT, "lm-eval task"),
        Column("filter", _TEXT, "what lm-eval took out of the model's words; none for all of them"),
        Column("document", _INT, "number of the document in its task, from 0"),
        Column("prompt", _TEXT, "what the model read, with the examples"),
        Column("choices", _TEXT, "what was to follow, or how it was to be written, of each request; JSON"),
        Column("target", _TEXT, "what is right, as the task says it"),
        Column("answers", _TEXT, "what the model made of each request after the filter; JSON"),
    ),
)

DIFFERENCES = Table(
    "differences.parquet",
    ("model", "other", "task", "metric"),
    (
        Column("size", _TEXT, "label of the size"),
        Column("model", _TEXT, "name of the model, as in evaluations.parquet"),
        Column("other", _TEXT, "what it is held against: teacher, a student's baselines, or what an aligned one was"),
        Column("task", _TEXT, "lm-eval task"),
        Column("metric", _TEXT, "metric and filter, as in benchmarks.parquet; only means over documents"),
        Column("num_documents", _INT, "documents that both answered"),
        Column("difference", _FLOAT, "the model's metric less the other's"),
        Column("standard_error", _FLOAT, "of the difference: over the differences of each document"),
        Column("differs", _BOOL, "whether it is more than 1.96 standard errors; if not, chance may have made it"),
    ),
)

COMPARISON = Table(
    "comparison.parquet",
    ("model", "measure"),
    (
        Column("model", _TEXT, "of two runs the member's name; null of two models"),
        Column("measure", _TEXT, "what is held against a limit"),
        Column("base", _FLOAT, "of the first model; null where it has none of its own"),
        Column("other", _FLOAT, "of the second model; null where it has none of its own"),
        Column("value", _FLOAT, "what the limit is for: the difference, the ratio, or the measure itself"),
        Column("limit", _FLOAT, "the most, or the least, that is allowed; null where nothing was asked for"),
        Column("passes", _BOOL, "whether the value keeps to it"),
        Column("told", _TEXT, "the same in words"),
        Column("standard_error", _FLOAT, "of a task's value, over the same documents; null of what has none"),
    ),
)

ALIGNMENT = Table(
    "alignment.parquet",
    ("model", "look"),
    (
        Column("model", _TEXT, "name of the aligned model's folder"),
        Column("look", _TEXT, "before: the student as it was given; after: as it was written"),
        Column("method", _TEXT, "sft, dpo or kd"),
        Column("num_parameters", _INT, "total parameters, tied embeddings counted once"),
        Column("tokens_trained", _INT, "tokens of the whole alignment, padding included; 0 before"),
        Column("exported_tokens", _INT, "of these, after how many its weights were reached: the best validation"),
        Column("num_conversations", _INT, "held-out conversations"),
        Column("num_tokens", _INT, "of these, the tokens that assistants write, over which all else is measured"),
        Column("loss_nats", _FLOAT, "next-token loss; of dpo, on what was chosen"),
        Column("perplexity", _FLOAT, "exp(loss_nats)"),
        Column("kl_nats", _FLOAT, "KL(teacher || model) per token; null without a teacher"),
        Column("preference_loss", _FLOAT, "of dpo what is minimised, -log sigmoid of the margin, in nats"),
        Column("margin", _FLOAT, "of dpo beta times the gain of what is chosen over that of what is rejected, in nats"),
        Column("accuracy", _FLOAT, "of dpo the share of held-out preferences whose margin is above 0; null before"),
    ),
)

RUN_TABLES = (
    CANDIDATES, EXCLUSIONS, TRIALS, RATES, CORRELATIONS, TEXTS, CURVES, EVALUATIONS, SAMPLES, BENCHMARKS, DOCUMENTS,
    ANSWERS, DIFFERENCES,
)  # fmt: skip
"""Those that lie in a run folder, made of the rows of its stages."""

TABLES = (SCORES, *RUN_TABLES, COMPARISON, ALIGNMENT)
