"""Curation: sources, license, quality, exact and near duplicates, decontamination, mixture."""
