"""A simulated paired cohort (slides, raw counts, outcomes) with a known truth, for the demo and the tests.

Nothing in it was ever a patient. Every file says so: ids begin with ``SIM-``, the case sheet has ``cohort =
simulated``, slides carry the word in their description, and the folder holds a ``SIMULATED.txt``.
"""
