"""Learnt stand-ins of rewards: small networks that are fitted to a reward's scores, and have a gradient."""
