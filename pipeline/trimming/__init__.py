"""SmartTrim: fewer tokens and heads per instance while fine-tuning and at inference."""
