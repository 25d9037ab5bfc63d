"""A run's report: report.html with its figures, and the results as a table for the terminal."""

from launch.report.html import write_report
from launch.report.table import results_table

__all__ = ["results_table", "write_report"]
