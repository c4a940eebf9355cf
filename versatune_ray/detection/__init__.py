"""Knowledge detection, Algorithm 1 of VersaTune: generate from BOS, judge every sequence,
average.
"""
