"""One integer per stage. Raise it when its code changes what it computes: that, not the edit, reruns it."""

REVISIONS = {
    "cohort": 1,
    "check": 3,
    "tissue": 2,
    "tiles": 3,
    "stain": 2,
    "features": 2,
    "import": 1,
    "quality": 2,
    "expression": 2,
    "splits": 1,
    "genes": 4,
    "scores": 2,
    "models": 3,
    "predictions": 3,
    "evaluation": 2,
    "report": 4,
}
