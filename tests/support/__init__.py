"""What several tests share: small pipelines, small plugins, made runs."""
