"""Search over ε, δ, σ (or any other key) with Ray Tune: every trial is a fine-tuning, on shared
detection, references and tokens.

usage: python jobs/sweep.py [--config FILE] [--plan] [key=value …]
leaves: {storage}/{run}/sweep/ with best.yaml for jobs/finetune.py
"""

from versatune_ray.cli import main
from versatune_ray.tuning.outlook import plan_sweep
from versatune_ray.tuning.sweep import check_sweep, sweep

if __name__ == "__main__":
    main("sweep", sweep, __doc__, plan_sweep, check=check_sweep, uses=("records",))
