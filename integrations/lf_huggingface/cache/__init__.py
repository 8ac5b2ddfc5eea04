"""Caches for generation that keep what a pattern reaches, and no more.

window.py   grows with the window, then rolls
static.py   tensors of one place and size, for compiled steps
"""
