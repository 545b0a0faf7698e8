"""The tasks as lm-evaluation-harness reads them: a YAML file each, for its --include_path."""
