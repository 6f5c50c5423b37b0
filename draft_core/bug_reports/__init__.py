"""Writes what a bug report needs: versions, device, recipe, last metrics and error, without naming the machine."""
