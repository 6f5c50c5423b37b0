"""From a recipe file to typed values, without torch."""
