"""The first stage of a run: text becomes tokens."""

from dataclasses import asdict

from transformers import AutoTokenizer

from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.models.checkpoint import Checkpoint
from minitron_nas.pipeline import inputs
from minitron_nas.pipeline.engine import Engine, Left, Stage
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import RunTokens
from minitron_nas.progress import Progress
from minitron_nas.text.sources import Data, data_fingerprint
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
    return RunTokens(folder, done, done.result["distillation_tokens"])
