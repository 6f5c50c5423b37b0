"""What can be named, without torch: rewards, methods, models, and the plugins that register them."""
