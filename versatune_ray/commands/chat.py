"""``versatune chat``: the tuned model in a terminal, and the base model beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from versatune_ray.cli import Parser
from versatune_ray.commands.runs import Tuned, tuned_of
from versatune_ray.domains.records import Message
from versatune_ray.errors import UserError, printable
from versatune_ray.runtime.installation import check_installation

Talk = list[Message]
# a conversation per model → its next turn, by the model's name
Answer = Callable[[Mapping[str, Talk]], Iterator[tuple[str, str]]]
_NEW = "/new"


def command(what: str, arguments: Sequence[str]) -> None:
    """Talk until the input ends.

    Raises:
        UserError: the run has no tuned model, or one of the two cannot be loaded.
    """
    parser = Parser(
        prog="versatune chat",
        description=what,
        epilog=f"{_NEW} begins a new conversation; Ctrl-D ends. Piped text is one prompt.",
    )
    parser.add_argument("run", help="folder of a run, such as runs/mine, or its URI")
    parser.add_argument("--prompt", metavar="TEXT", help="ask this and end")
    parser.add_argument("--no-base", action="store_true", help="the tuned model alone")
    parser.add_argument("--raw", action="store_true", help="continue the text; no chat template")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="most per answer; 256")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0, the default: most likely"
    )
    given = parser.parse_args(arguments)
    if given.tokens < 1:
        raise UserError(f"--tokens: {given.tokens} is below 1")
    if not 0 <= given.temperature < 100:
        raise UserError(f"--temperature: {given.temperature:g} is not between 0 and 100")
    tuned = tuned_of(given.run)
    at_once = given.prompt
    if at_once is None and not sys.stdin.isatty():
        at_once = sys.stdin.read().strip()
    if at_once == "":
        raise UserError("versatune chat: the prompt is empty")
    names = ["tuned"] if given.no_base else ["tuned", "base"]
    with contextlib.suppress(KeyboardInterrupt):
        check_installation()
        answer = _models(tuned, names, given.tokens, given.temperature, given.raw)
        if at_once is not None:
            talk(names, answer, [at_once])
        else:
            print(f"{tuned.model}\nbeside it: {tuned.base if len(names) > 1 else 'nothing'}\n")
            talk(names, answer, _typed(), remember=not given.raw)


def talk(
    names: Sequence[str], answer: Answer, prompts: Iterable[str], remember: bool = False
) -> None:
    """Every prompt to every model, what each says under its name.

    Args:
        remember: each model goes on with its own conversation until ``/new``.
    """
    talks: dict[str, Talk] = {name: [] for name in names}
    for prompt in prompts:
        if not remember or prompt == _NEW:
            talks = {name: [] for name in names}
        if not prompt or prompt == _NEW:
            continue
        for turns in talks.values():
            turns.append(Message(role="user", content=prompt))
        for name, said in answer(talks):
            talks[name].append(Message(role="assistant", content=said))
            lines = printable(said.strip()).splitlines() or ["(nothing)"]
            first, *more = lines
            print(f"{name:>5} │ {first}", *(f"      │ {line}" for line in more), sep="\n")
        print(flush=True)


def _typed() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows and history in input()
    while True:
        try:
            yield input("  you │ ").strip()
        except EOFError:
            print()
            return


def _models(tuned: Tuned, names: Sequence[str], most: int, temperature: float, raw: bool) -> Answer:
    """Both models, loaded once, on the GPU if there is one."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, logging

    from versatune_ray.domains.chat import encode_prompt, load_tokenizer
    from versatune_ray.domains.records import BadRecord
    from versatune_ray.runs.storage import fetch
    from versatune_ray.runtime.models import commit
    from versatune_ray.training.adapters import peft

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    remote = tuned.config.model.trust_remote_code
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # the template that the tuned model learned, for both: the same question, the same tokens
    tokenizer = load_tokenizer(str(tuned.model), trust_remote_code=remote)

    def load(path: str) -> Any:
        try:
            return AutoModelForCausalLM.from_pretrained(
                fetch(path),
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=remote,
                revision=commit(path),
            ).to(device)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be loaded: {' '.join(str(error).split())}") from error

    loaded: dict[str, Any] = {}
    if tuned.adapter:
        base = load(tuned.base)
        loaded["tuned"] = peft().PeftModel.from_pretrained(base, str(tuned.model)).eval()
    else:
        loaded = {
            name: load(str(tuned.model) if name == "tuned" else tuned.base).eval() for name in names
        }
    # the end of a turn that the tuned model learned, for both
    stops = GenerationConfig.from_pretrained(str(tuned.model)).eos_token_id
    context = getattr(loaded["tuned"].config, "max_position_embeddings", None)

    def written(name: str, turns: Talk) -> str:
        beside = name == "base" and tuned.adapter
        model = loaded["tuned" if beside else name]
        try:
            tokens = (
                tokenizer(turns[-1]["content"])["input_ids"]
                if raw
                else encode_prompt(tokenizer, turns)
            )
        except BadRecord as error:
            return f"(the chat template refuses this: {error})"
        room = most if context is None else min(most, context - len(tokens))
        if room < 1:
            return f"(longer than the {context} tokens that the model takes; {_NEW} begins anew)"
        inputs = torch.tensor([tokens], device=device)
        config = GenerationConfig(
            max_new_tokens=room,
            do_sample=temperature > 0,
            temperature=temperature or None,
            eos_token_id=stops,
            pad_token_id=0,  # of one row, which is never padded
        )
        with torch.no_grad(), model.disable_adapter() if beside else contextlib.nullcontext():
            found = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), generation_config=config
            )
        return str(tokenizer.decode(found[0, len(tokens) :], skip_special_tokens=True))

    def answer(talks: Mapping[str, Talk]) -> Iterator[tuple[str, str]]:
        for name, turns in talks.items():
            yield name, written(name, turns)

    return answer
