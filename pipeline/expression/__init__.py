"""From the user's expression table to one normalised cases x genes artefact, with a report of all that was decided."""

from pipeline.expression.prepare import ExpressionParams, prepare_expression

__all__ = ["ExpressionParams", "prepare_expression"]
