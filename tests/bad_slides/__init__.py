"""A corpus of damaged slides, made from small sound ones, and the stages to run them through."""
