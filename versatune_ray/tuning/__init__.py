"""Many fine-tunings compared: ``sweep`` (Ray Tune over settings), ``study`` (methods × seeds),
``lookahead`` (recorded losses).
"""
