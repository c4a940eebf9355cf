"""Multiple choice of a base model, a line for each domain of evaluation.benchmarks: accuracy by
likelihood with its standard error, and that of guessing, as a study counts them.

usage: python jobs/configs/smollm2/multiple_choice.py --config FILE [key=value …]
"""

from __future__ import annotations

from math import sqrt

from transformers.utils import logging

from versatune_ray.cli import exits_on_error, job_parser, parse, read_config
from versatune_ray.errors import UserError
from versatune_ray.evaluation.choices import chance, load_choices
from versatune_ray.evaluation.likely import likely_accuracy
from versatune_ray.runtime.gguf import with_folders
from versatune_ray.settings import Config


def ask(config: Config) -> None:
    """Print the table, a line as soon as it is known.

    Raises:
        UserError: no model or no multiple choice, or as ``load_choices``.
    """
    asked = load_choices(config)
    if config.model.path is None or not asked:
        raise UserError("model.path and evaluation.benchmarks: name a model and multiple choice")
    logging.disable_progress_bar()  # of weights, among the lines of the table
    print("| set | questions | accuracy | guessing | standard errors above |")
    print("|---|---|---|---|---|")
    for name, sets in asked.items():
        right = likely_accuracy(config.model.path, {name: sets}, config.model.trust_remote_code)
        count, guessed = sum(map(len, sets)), chance(sets)
        # binomial; a domain of several sets is their mean, which this takes to be of one size
        error = sqrt(right[name] * (1 - right[name]) / count)
        above = (right[name] - guessed) / error if error else float("nan")
        print(
            f"| {name} | {count:,} | {right[name]:.1%} ± {error:.1%} | {guessed:.1%} "
            f"| {above:+.1f} |",
            flush=True,
        )


def main() -> None:
    asked = parse(job_parser(__doc__))
    with exits_on_error(asked.debug):
        ask(with_folders(read_config(asked)))


if __name__ == "__main__":
    main()
