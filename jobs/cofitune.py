"""Find the layers and modules that should move for mixture.targets, and the units that the other
abilities need (CoFiTune).

usage: python jobs/cofitune.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/sweep/ with best.yaml for jobs/finetune.py
"""

from versatune_ray.cli import main
from versatune_ray.tuning.cofitune import check_cofitune, cofitune
from versatune_ray.tuning.outlook import plan_cofitune

if __name__ == "__main__":
    main("cofitune", cofitune, __doc__, plan_cofitune, check=check_cofitune, uses=("records",))
