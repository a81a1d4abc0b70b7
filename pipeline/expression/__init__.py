"""From the user's expression tables to one normalised cases x genes artefact, with a report of all that was decided."""

from pipeline.expression.params import ExpressionParams
from pipeline.expression.prepare import prepare_expression

__all__ = ["ExpressionParams", "prepare_expression"]
