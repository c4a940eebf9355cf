"""Average models that were tuned from one base, such as one for each domain: a model soup. A rival
of one tuning on a mixture of the domains; jobs/evaluate.py measures it (evaluation.models.soup=…).

usage: python jobs/soup.py RUN RUN … [--weights 0.5 0.5 …] [-o FOLDER]
       RUN: a run's folder, name or URI, of which the tuned model is taken, or a model's folder
leaves: FOLDER, a Hugging Face model (soup)
"""

import argparse
from pathlib import Path

from versatune_ray.cli import Parser, exits_on_error, writing
from versatune_ray.commands.runs import folder_of
from versatune_ray.runs.storage import bring
from versatune_ray.training.soup import soup


def model_of(given: str) -> Path:
    """A run's tuned model, or the folder itself."""
    folder = folder_of(given)
    tuned = folder / "finetune" / "model"
    return tuned if bring(tuned) else folder


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="RUN", help="folders of runs or of models")
    parser.add_argument("--weights", nargs="+", type=float, help="of each; none: equal ones")
    parser.add_argument("-o", "--output", type=Path, default=Path("soup"))
    given = parser.parse_args()
    with exits_on_error(given.debug), writing(given.output):
        models = [model_of(one) for one in given.models]
        soup(models, given.weights or [1.0] * len(models), given.output)
        print(given.output)


if __name__ == "__main__":
    main()
