"""The official metrics, from their definitions.

answers.py     exact match and F1 of answers, over aliases; joint with evidence
classes.py     accuracy and F1 of labels
"""
