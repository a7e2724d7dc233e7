"""Replays a trace of requests over cards and models through the live program's decisions.

``python -m bench.placement trace.csv`` prints what each policy made of it; see ``trace`` for the
file, ``simulation`` for the rules, ``policies`` for what is compared.
"""
