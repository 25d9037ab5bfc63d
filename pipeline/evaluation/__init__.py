"""Scores of trained models, one module a task; `exported` has the table of tasks for export folders."""
