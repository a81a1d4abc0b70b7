"""Genes of each fold: chosen and scaled on that fold's training cases, and on nothing else."""

from pipeline.genes.fold import select_genes, select_genes_for_folds
from pipeline.genes.params import GeneParams

__all__ = ["GeneParams", "select_genes", "select_genes_for_folds"]
