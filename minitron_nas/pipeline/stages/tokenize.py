"""The first stages of a run: text becomes tokens."""

from dataclasses import asdict, replace

from transformers import AutoTokenizer

from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Engine, Left, Stage
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import HELD_OUT, RunTokens
from minitron_nas.progress import Progress
from minitron_nas.text.data_source import OWN
from minitron_nas.text.held_out import in_turns, read_held_out
from minitron_nas.text.sources import Data, TextSource, data_fingerprint, named_source, source_fingerprint
from minitron_nas.text.splits import TextReader, TokenSplits, split_text


def prepare_tokens(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, data: Data) -> RunTokens:
    """Read, split and pack the text; later stages read the result only.

    Args:
        engine: Runs the stage.
        plan: Says how text becomes tokens, and how many are needed.
        teacher: Whose tokenizer reads it.
        data: The text.
    """
    folder = engine.folder.tokens

    def action(progress: Progress) -> Left:
        tokenizer, wanted, used = AutoTokenizer.from_pretrained(teacher.path), plan.distillation.tokens, None
        if wanted is not None:
            schedule = Schedule.resolve(plan.distillation, wanted, plan.text.sequence_length)
            wanted, used = schedule.num_tokens, schedule.num_steps * schedule.batch_sequences
        reader = TextReader(tokenizer, teacher.architecture.vocab_size, plan.text)
        counts = split_text(data, reader, plan.seed, wanted, folder, used, progress)
        tokens = plan.distillation.tokens or TokenSplits.load(folder).one_pass_tokens
        return Left({"distillation_tokens": tokens, "sources": [asdict(count) for count in counts]})

    stage = Stage(
        "text",
        "read, split and pack",
        inputs.of_text(plan, teacher, data_fingerprint(data, plan.text)),
        outputs=[folder / f"{name}.safetensors" for name in ("calibration", "validation", "train")],
    )
    done = engine.run(stage, action)
    tokens = RunTokens(folder, done, done.result["distillation_tokens"])
    return _with_other_texts(engine, plan, teacher, tokens) if plan.evaluation.texts else tokens


def _with_other_texts(engine: Engine, plan: FamilyPlan, teacher: Checkpoint, tokens: RunTokens) -> RunTokens:
    """Read the held-out texts that a plan names, which take turns with its own from then on."""
    sources = held_out_sources(plan)
    path = tokens.folder / HELD_OUT

    def action(progress: Progress) -> Left:
        own = tokens.part("validation")
        reader = TextReader(AutoTokenizer.from_pretrained(teacher.path), teacher.architecture.vocab_size, plan.text)
        texts = [own]
        for source in sources:
            texts.append(read_held_out(source, reader, own.num_sequences, plan.seed))
            progress(len(texts) - 1, len(sources))
        in_turns(texts).save(path)
        return Left()

    stage = Stage(
        "held-out texts",
        f"read {', '.join(plan.evaluation.texts)}",
        inputs.of_held_out(plan, {source.name: source_fingerprint(source) for source in sources}),
        needs=(tokens.done,),
        outputs=[path],
    )
    done = engine.run(stage, action)
    return replace(tokens, done=done, texts=(OWN, *plan.evaluation.texts))


def held_out_sources(plan: FamilyPlan) -> list[TextSource]:
    """Return the held-out texts that a plan names.

    Args:
        plan: The plan.
    """
    texts = plan.evaluation.texts.items()
    return [named_source(text, plan.text, f"evaluation.texts.{name}") for name, text in texts]
