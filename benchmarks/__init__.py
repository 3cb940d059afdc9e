"""Ratios in one run on the same data: our worker, a stock Faust agent, a bare consumer.

`make bench` runs them all.
"""
