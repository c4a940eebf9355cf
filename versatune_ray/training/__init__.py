"""Fine-tuning: a core in torch and transformers without Ray, a controller of the shares, and the
thin Ray parts that join them.
"""

import logging
import os

# transformers loads torchao wherever it is installed; of it only optimizers are used here, not the
# kernels that it fails to load.
os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
