"""Fine-tuning: a core in torch and transformers without Ray, a controller of the shares, and the thin Ray parts that join them."""
