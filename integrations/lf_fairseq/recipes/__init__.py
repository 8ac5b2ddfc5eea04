"""Trainings that anyone can run: `python -m lf_fairseq.recipes.char_lm`."""
