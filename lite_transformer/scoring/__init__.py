"""BLEU and chrF with their protocols, and the one reader of generation output."""
