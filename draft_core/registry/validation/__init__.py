"""Values of configs and recipes: checked by pydantic, and what is wrong with them said in one sentence."""
