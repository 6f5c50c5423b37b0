"""Held-out images: drawn, measured, and judged for collapse."""
